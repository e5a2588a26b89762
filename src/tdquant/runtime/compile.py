"""``compile``: hands a frozen model to a backend. A backend is one function, registered under its
name; ``"auto"`` tries those that fit the device of the model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import BackendError, FreezeError, TDQError
from tdquant.frozen import is_frozen

Example = tuple[Any, ...]
"""Arguments of one call, ``(x, t)``: what a backend may measure with."""


class Lower(Protocol):
    """From a frozen model to a module with the same call; it must not change the frozen model.

    It raises a BackendError or MissingDependencyError, early, where it cannot run here.
    """

    def __call__(self, frozen: nn.Module, example: Example | None = None) -> nn.Module: ...


BACKENDS: dict[str, Lower] = {}
"""Every registered backend by its name."""

PREFERENCE = {
    "cpu": ("cpu", "openvino", "reference"),
    "cuda": ("cuda", "reference"),
}
"""Device of the model -> what ``"auto"`` tries, in this order. It does not move a model."""

SLOW = ("reference",)
"""Exact and never fast: taken if nothing else runs, without being timed."""


@dataclass(frozen=True)
class Choice:
    """Which backend runs a compiled model, and why; the compiled model's ``tdq_backend``.

    Attributes:
        backend: Its name.
        why: In words.
        seconds: Median time of a call of each backend that was timed.
        passed_over: Backend -> why it cannot run the model here.
    """

    backend: str
    why: str
    seconds: dict[str, float] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.backend}, {self.why}"]
        parts += [f"not {name}: {reason}" for name, reason in self.passed_over.items()]
        return "; ".join(parts)


def register_backend(name: str) -> Callable[[Lower], Lower]:
    """Registers the decorated function as the backend ``name``."""

    def put(lower: Lower) -> Lower:
        BACKENDS[name] = lower
        return lower

    return put


def compile(
    frozen: nn.Module,
    backend: str = "auto",
    example: Example | None = None,
    verbose: bool = True,
) -> nn.Module:
    """Lowers a frozen model to integer arithmetic.

    Arguments:
        frozen: What ``freeze`` or ``load`` returned; it stays as it is.
        backend: Name of a registered backend, or ``"auto"``: with an example the fastest that
            runs here, without one the first in ``PREFERENCE``.
        example: Arguments ``(x, t)`` of a typical call, by which backends choose kernels.
        verbose: Print what ``"auto"`` chose, and why.

    Returns:
        A module with the same call. ``tdq.summary`` shows its kernels, ``tdq_backend`` is the
        ``Choice``.

    Raises:
        FreezeError: The model is not frozen.
        BackendError: No such backend, or it cannot run the model here.
        MissingDependencyError: The backend's package is not installed.
    """
    clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be compiled", fix="tdq.compile(tdq.freeze(model))"
        )
    if backend != "auto" and backend not in BACKENDS:
        raise BackendError(
            f"no backend {backend!r}", where="compile", fix=f"one of {', '.join(BACKENDS)}, auto"
        )
    if backend == "auto":
        compiled, choice = _choose(frozen, example)
        if verbose:
            print(f"backend: {choice}")
    else:
        compiled, choice = BACKENDS[backend](frozen, example), Choice(backend, "as asked")
    compiled.tdq_backend = choice  # type: ignore[assignment]
    return compiled


def _choose(frozen: nn.Module, example: Example | None) -> tuple[nn.Module, Choice]:
    """The model compiled by the backend that suits it best, and the reasons."""
    device = next((p.device.type for p in frozen.parameters()), "cpu")
    names = [name for name in PREFERENCE.get(device, SLOW) if name in BACKENDS]
    compiled: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    for name in names:
        if compiled and (example is None or name in SLOW):
            break
        try:
            compiled[name] = BACKENDS[name](frozen, example)
        except TDQError as error:
            failed[name] = error.what
    if not compiled:
        raise BackendError(
            f"no backend runs the model on {device!r}",
            where="compile",
            why="; ".join(f"{name}: {reason}" for name, reason in failed.items()),
            fix="model.cpu(), or name a backend to see its whole error",
        )
    first = next(iter(compiled))
    if example is None or len(compiled) == 1:
        reason = "the only one that runs here" if example else f"the first choice on {device}"
        return compiled[first], Choice(first, reason, passed_over=failed)
    seconds = time_calls(compiled, example)
    best = min(seconds, key=seconds.__getitem__)
    times = ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in seconds.items())
    return compiled[best], Choice(best, f"the fastest of {times}", seconds, failed)


@torch.no_grad()
def time_calls(
    models: dict[str, nn.Module], example: Example, runs: int = 5, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of a call of each model, the calls interleaved so that a disturbance meets
    all alike.

    Arguments:
        models: What to time, by name.
        example: Arguments of the call.
        runs: Calls of each that count.
        warmup: Calls of each before them.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(warmup + runs):
        for name, model in models.items():
            began = time.perf_counter()
            model(*example)
            if any(isinstance(a, torch.Tensor) and a.is_cuda for a in example):
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
