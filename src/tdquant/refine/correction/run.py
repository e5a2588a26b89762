"""``correct``: compensates the systematic part of quantization error in a denoiser's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from tdquant.calls.call import Call
from tdquant.clock import Clock, clock_of
from tdquant.errors import CalibrationError, FreezeError
from tdquant.freezing import copy_model, is_frozen
from tdquant.layers.correction import (
    BiasTable,
    OutputCorrection,
    correction_of,
    uncorrected,
)
from tdquant.refine.correction.fit import GAINS, Tables, solve
from tdquant.refine.correction.moments import Collector, Layout, predicted
from tdquant.scales import TableScale
from tdquant.scales.table import training_timesteps
from tdquant.state import note
from tdquant.support.announce import announce
from tdquant.support.progress import track
from tdquant.support.restoring import with_gradients

M = TypeVar("M", bound=nn.Module)


@with_gradients
@torch.no_grad()
def correct(
    frozen: M,
    teacher: Callable[..., Any],
    calls: Iterable[Call],
    *,
    gain: str = "energy",
    bias: bool = True,
    rounds: int = 2,
    progress: bool = True,
) -> M:
    """Returns a copy of a frozen model with a gain and a bias over time behind its output, which
    compensate what its predictions have lost against those of the float model. Of several outputs
    the first, or ``.sample``, is the prediction. ``tdquant.refine.correction.fit`` has the
    formulas.

    Arguments:
        frozen: A model that ``freeze`` or ``load`` returned. A correction that it has is fitted
            anew.
        teacher: The float model, with the same call.
        calls: Calls ``(x, t)``, best those of the quantized model's own samples:
            ``tdq.trajectories(frozen, scheduler, 32, shape)``. ``frozen`` has the correction found
            in one round during the next, so that trajectories follow it. Four samples or more at a
            time: one shows nothing, and corrects nothing.
        gain: ``"energy"`` leaves no noise behind in samples, ``"least"`` has the least squared
            error of one call, ``"none"`` is a bias alone.
        bias: Fit a shift of each channel. Predictions whose channels are not known, those of
            another shape than x, have none.
        rounds: Passes over the calls; one over an iterator.
        progress: Draw a bar.

    Returns:
        The corrected model; ``frozen`` is unchanged. Saving, compiling and exporting keep the
        correction, and the history of the model records it.

    Raises:
        FreezeError: The model is not frozen: what changes weights or scales comes first.
        CalibrationError: No calls, predictions that are not finite or not one tensor, or an
            invalid argument.
    """
    clock = clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be corrected",
            why="the correction is fitted to its final weights and scales",
            fix="tdq.correct(tdq.freeze(model), teacher, calls)",
        )
    check_gain(gain)
    if rounds < 1:
        raise CalibrationError(f"{rounds=}", where="correct", fix="at least 1")
    if iter(calls) is calls:
        rounds = 1
    with _correction_restored(frozen):
        for i in range(rounds):
            label = "correcting" if rounds == 1 else f"correcting, {i + 1} of {rounds}"
            found = Collector(frozen, clock)
            for call in track(calls, label, show=progress):
                with uncorrected(frozen):
                    z = predicted(frozen, call)
                found.add(call, z, predicted(teacher, call))
            tables = solve(found.moments(), gain, bias and found.layout.axis is not None)
            install(frozen, clock, tables, found.layout)
        corrected = copy_model(frozen)
    note(corrected, "correct", **tables.facts())
    return announce(corrected)


def check_gain(gain: str) -> None:
    """Raises CalibrationError for a gain that ``solve`` does not know."""
    if gain not in GAINS:
        raise CalibrationError(f"no {gain=}", where="correct", fix=f"one of {', '.join(GAINS)}")


@contextlib.contextmanager
def _correction_restored(frozen: nn.Module) -> Iterator[None]:
    """Restores the correction behind the model's output."""
    before = correction_of(frozen)
    try:
        yield
    finally:
        now = correction_of(frozen)
        if before is not None:
            before.attach(frozen)
        elif now is not None:
            now.detach(frozen)


def install(model: nn.Module, clock: Clock, tables: Tables, layout: Layout) -> None:
    """Puts a correction behind a model's output, over all timesteps of a frozen model's tables."""
    scale = TableScale(tables.knots, tables.gains).requires_grad_(False)
    bias = None if tables.biases is None else BiasTable(tables.knots, tables.biases)
    correction = OutputCorrection(scale, clock, layout.channels, bias, layout.axis or 1)
    if clock.coverage is not None:
        correction.resample(training_timesteps(*clock.coverage))
    correction.to(next(model.parameters()).device).attach(model)
