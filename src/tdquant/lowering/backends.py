"""``compile``: lowers a frozen model by a backend. A backend is one function, registered under its
name; ``"auto"`` takes the first that runs the model on its device.
"""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import BackendError, FreezeError, MissingDependencyError, TDQError
from tdquant.freezing import is_frozen
from tdquant.lowering.session import ExportedModel

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
    "cpu": ("openvino", "onednn", "reference"),
    "cuda": ("cuda", "reference"),
}
"""Device of the model -> what ``"auto"`` tries, in this order. It does not move a model."""

ALIASES = ("auto", "cpu")
"""Names that stand for the first backend of ``PREFERENCE`` that runs the model: on its device, or
on the CPU.
"""


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
        backend: Name of a registered backend, or ``"auto"``: the first of ``PREFERENCE`` that runs
            the model on its device. ``"cpu"`` is ``"auto"`` for a model on the CPU alone.
        example: Arguments ``(x, t)`` of a typical call. With it a backend is built, and fails, at
            once; else some are built at the first call, where ``"auto"`` falls back with a
            warning.
        verbose: Print what ``"auto"`` or ``"cpu"`` chose, and why.

    Returns:
        A module with the same call. ``tdq.summary`` shows its kernels, ``tdq_backend`` is the
        ``Choice``.

    Raises:
        FreezeError: The model is not frozen.
        BackendError: No such backend, or it cannot run the model here.
        MissingDependencyError: The backend's package is not installed, or too old.
    """
    clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be compiled", fix="tdq.compile(tdq.freeze(model))"
        )
    if backend not in ALIASES and backend not in BACKENDS:
        known = ", ".join((*BACKENDS, *ALIASES))
        raise BackendError(f"no backend {backend!r}", where="compile", fix=f"one of {known}")
    if backend not in ALIASES:
        compiled = BACKENDS[backend](frozen, example)
        compiled.tdq_backend = Choice(backend, "as asked")  # type: ignore[assignment]
        return compiled
    device = next((p.device.type for p in frozen.parameters()), "cpu")
    if backend == "cpu" != device:
        raise BackendError(f"the model is on {device!r}", where="cpu", fix="model.cpu()")
    names = PREFERENCE.get(device, ("reference",))
    compiled, choice = _first_that_runs(frozen, [n for n in names if n in BACKENDS], example)
    compiled.tdq_backend = choice  # type: ignore[assignment]
    if verbose:
        print(f"backend: {choice}")
    return compiled


def _first_that_runs(
    frozen: nn.Module, names: Sequence[str], example: Example | None
) -> tuple[nn.Module, Choice]:
    """The model compiled by the first of the backends that does not fail, and the reasons."""
    failed: dict[str, str] = {}
    for place, name in enumerate(names):
        try:
            compiled = BACKENDS[name](frozen, example)
        except Exception as error:  # an engine's own errors are as good a reason as ours
            failed[name] = _reason(error)
            continue
        choice = Choice(name, "the first that runs here" if failed else "the first choice", failed)
        if example is None and isinstance(compiled, ExportedModel):
            compiled = FirstCall(frozen, compiled, names[place + 1 :], choice)
        return compiled, choice
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


class FirstCall(nn.Module):
    """A compiled model whose engine is built at its first call, or the next one if that fails.

    Whatever else is asked of it, the model that runs answers.

    Arguments:
        frozen: The frozen model.
        model: As compiled by the first choice.
        names: Backends to try after it.
        choice: The first choice.
    """

    def __init__(
        self, frozen: nn.Module, model: nn.Module, names: Sequence[str], choice: Choice
    ) -> None:
        super().__init__()
        self.model, self.tdq_backend = model, choice
        self._names, self._lock = names, threading.Lock()
        self._frozen: tuple[nn.Module, ...] = (frozen,)  # as no child; empty once a call ran

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not built yet, as while it is copied
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model that runs.

        Raises:
            Exception: That of the first choice, where no backend can run the call.
        """
        if self._frozen:
            with self._lock:
                if self._frozen:
                    return self._first(args, kwargs)
        return self.model(*args, **kwargs)

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            output = self.model(*args, **kwargs)
        except Exception as error:
            output = self._fall_back(error, args, kwargs)
        self._frozen = ()
        return output

    def _fall_back(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the next backend that runs the call, which takes the place of the first;
        the error if there is none, as where the arguments are wrong.
        """
        first = self.tdq_backend
        failed = {**first.passed_over, first.backend: _reason(error)}
        for name in self._names:
            try:
                model = BACKENDS[name](self._frozen[0])
                output = model(*args, **kwargs)
            except Exception as other:
                failed[name] = _reason(other)
                continue
            self.model = model
            self.tdq_backend = Choice(name, "the first that runs here", failed)
            warnings.warn(f"backend: {self.tdq_backend}", stacklevel=6)
            return output
        raise error


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
