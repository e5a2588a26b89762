"""``compile``: lowers a frozen model by a backend, one function registered under its name.
``"auto"`` takes the first that runs the model on its device.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from tdquant.errors import BackendError, MissingDependencyError, TDQError
from tdquant.lowering.lowered import require_frozen
from tdquant.lowering.session import ExportedModel
from tdquant.support.registry import registrar
from tdquant.support.restoring import with_gradients

Example = tuple[Any, ...]
"""Arguments of one call, ``(x, t)``: what a backend may measure with."""


class BackendFunction(Protocol):
    """Turns a frozen model into a module with the same call, without changing the model.

    Raises:
        BackendError: The model cannot run here; or MissingDependencyError.
    """

    def __call__(self, frozen: nn.Module, example: Example | None = None) -> nn.Module: ...


BACKENDS: dict[str, BackendFunction] = {}
"""Every registered backend by its name."""

register_backend = registrar(BACKENDS)
"""``@register_backend("name")`` registers a BackendFunction."""

PREFERENCE = {
    "cpu": ("openvino", "onednn", "reference"),
    "cuda": ("cuda", "reference"),
}
"""Device of the model -> what ``"auto"`` tries, in this order. It does not move a model."""

ALIASES = ("auto", "cpu")
"""Names that stand for the first backend of ``PREFERENCE`` that runs the model: on its device, or
on the CPU.
"""


AS_ASKED, FIRST_CHOICE, FIRST_THAT_RUNS = (
    "as asked", "the first choice", "the first that runs here"
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """Which backend runs a compiled model, and why; the compiled model's ``tdq_backend``.

    Attributes:
        backend: Its name.
        why: In words.
        passed_over: Backend -> why it cannot run the model here.
    """

    backend: str
    why: str
    passed_over: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.backend}, {self.why}"]
        parts += [f"not {name}: {reason}" for name, reason in self.passed_over.items()]
        return "; ".join(parts)


@with_gradients
def compile(
    frozen: nn.Module,
    backend: str = "auto",
    example: Example | None = None,
    *,
    check: bool = True,
) -> nn.Module:
    """Lowers a frozen model to integer arithmetic.

    Arguments:
        frozen: What ``freeze`` or ``load`` returned; it stays as it is.
        backend: Name of a registered backend, or ``"auto"``: the first of ``PREFERENCE`` that runs
            the model on its device. ``"cpu"`` is ``"auto"`` for a model on the CPU alone.
        example: Arguments ``(x, t)`` of a typical call. With it a backend is built, and fails, at
            once; else some are built at the first call, where ``"auto"`` falls back with a
            warning.
        check: Compare the first call of an engine that runs a graph with the frozen model's,
            which costs one more call of it, and refuse the engine if it computes something else
            (``lowering.agreement``).

    Returns:
        A module with the same call. Its ``tdq_backend`` is the ``Choice``, which ``tdq.summary``
        shows with the kernels of all layers.

    Raises:
        FreezeError: The model is not frozen.
        BackendError: No such backend, or it cannot run the model here, or computes something else.
        MissingDependencyError: The backend's package is not installed, or too old.
    """
    require_frozen(frozen, "compiled", "tdq.compile(tdq.freeze(model))")
    if backend not in ALIASES and backend not in BACKENDS:
        known = ", ".join((*BACKENDS, *ALIASES))
        raise BackendError(f"no backend {backend!r}", where="compile", fix=f"one of {known}")
    if backend not in ALIASES:
        compiled = _built(backend, frozen, example, check)
        compiled.tdq_backend = Choice(backend, AS_ASKED)  # type: ignore[assignment]
        return compiled
    device = next((p.device.type for p in frozen.parameters()), "cpu")
    if backend == "cpu" != device:
        raise BackendError(f"the model is on {device!r}", where="cpu", fix="model.cpu()")
    names = PREFERENCE.get(device, ("reference",))
    registered = [n for n in names if n in BACKENDS]
    compiled, choice = _first_that_runs(frozen, registered, example, check)
    compiled.tdq_backend = choice  # type: ignore[assignment]
    return compiled


def _built(name: str, frozen: nn.Module, example: Example | None, check: bool) -> nn.Module:
    """The model compiled by one backend; with an example, graphs are made and run."""
    compiled = BACKENDS[name](frozen, example)
    if isinstance(compiled, ExportedModel):
        compiled.check = check
        if example is not None:
            compiled(*example)
    return compiled


def _first_that_runs(
    frozen: nn.Module, names: Sequence[str], example: Example | None, check: bool
) -> tuple[nn.Module, Choice]:
    """The model compiled by the first of the backends that does not fail, and the reasons."""
    failed: dict[str, str] = {}
    for place, name in enumerate(names):
        try:
            compiled = _built(name, frozen, example, check)
        except Exception as error:  # an engine's own errors are as good a reason as ours
            failed[name] = _reason(error)
            continue
        if example is None and isinstance(compiled, ExportedModel):
            compiled.fall_back = partial(_fall_back, compiled, frozen, names[place + 1 :])
        return compiled, Choice(name, FIRST_THAT_RUNS if failed else FIRST_CHOICE, failed)
    raise BackendError(
        "no backend runs the model",
        where="compile",
        why="; ".join(f"{name}: {reason}" for name, reason in failed.items()),
        fix="model.cpu(), or name a backend to see its whole error",
    )


def _reason(error: Exception) -> str:
    """Why a backend cannot run a model, in a line; of a missing package, how to install it."""
    if isinstance(error, MissingDependencyError):
        return f"{error.what} ({error.fix})"
    if isinstance(error, TDQError):
        return error.what
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _fall_back(
    model: ExportedModel,
    frozen: nn.Module,
    names: Sequence[str],
    error: Exception,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[nn.Module, Any]:
    """The first of the backends that runs the first call of a model whose engine failed, and its
    output; the error if there is none, as where the arguments are wrong.
    """
    first: Any = model.tdq_backend
    failed = {**first.passed_over, first.backend: _reason(error)}
    for name in names:
        try:
            other = _built(name, frozen, None, model.check)
            output = other(*args, **kwargs)
        except Exception as problem:
            failed[name] = _reason(problem)
            continue
        model.tdq_backend = Choice(name, FIRST_THAT_RUNS, failed)  # type: ignore[assignment]
        warnings.warn(f"backend: {model.tdq_backend}", stacklevel=6)
        return other, output
    raise error


@torch.no_grad()
def time_calls(
    models: dict[str, nn.Module], example: Example, runs: int = 5, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of a call of each model. Calls take turns, so a disturbance meets all.

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
