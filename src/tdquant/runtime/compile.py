"""``compile``: hands a frozen model to a backend. A backend is one function, registered under its
name.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import BackendError, FreezeError
from tdquant.frozen import is_frozen

Lower = Callable[[nn.Module], nn.Module]

BACKENDS: dict[str, Lower] = {}
"""Name -> function from a frozen model to a module with the same call; it must not change the
frozen model.
"""

PREFERENCE = ("reference",)
"""What ``"auto"`` takes: the first of these that is registered."""


def register_backend(name: str) -> Callable[[Lower], Lower]:
    """Registers the decorated function as the backend ``name``."""

    def put(lower: Lower) -> Lower:
        BACKENDS[name] = lower
        return lower

    return put


def compile(frozen: nn.Module, backend: str = "auto") -> nn.Module:
    """Lowers a frozen model to integer arithmetic.

    Arguments:
        frozen: What ``freeze`` or ``load`` returned; it stays as it is.
        backend: Name of a registered backend, or ``"auto"``.

    Returns:
        A module with the same call.

    Raises:
        FreezeError: The model is not frozen.
        BackendError: No such backend.
    """
    clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be compiled", fix="tdq.compile(tdq.freeze(model))"
        )
    if backend == "auto":
        backend = next(name for name in PREFERENCE if name in BACKENDS)
    if backend not in BACKENDS:
        raise BackendError(
            f"no backend {backend!r}", where="compile", fix=f"one of {', '.join(BACKENDS)}, auto"
        )
    return BACKENDS[backend](frozen)
