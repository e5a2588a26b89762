"""The correction of the output over time, as one of the remedies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tdquant.calibration.report import RemedyTrial
from tdquant.calls.call import Call
from tdquant.calls.observing import in_float
from tdquant.choice.trial import Trial
from tdquant.errors import CalibrationError
from tdquant.refine.correction import fit_correction
from tdquant.refine.correction.moments import predicted


@torch.no_grad()
def predictions(model: nn.Module, calls: Sequence[Call]) -> list[Tensor]:
    """The float model's predictions, to be recorded before weights change; none of a model whose
    prediction is not one tensor.
    """
    try:
        with in_float(model):
            return [predicted(model, call) for call in calls]
    except CalibrationError:
        return []


def try_correction(
    model: nn.Module,
    calls: Sequence[Call],
    targets: Sequence[Tensor],
    trial: Trial,
    seed: int,
    progress: bool,
) -> list[RemedyTrial]:
    """Fits a correction of the output, and keeps it if held-out samples and the whole model's
    error fall, in place.

    Arguments:
        model: A calibrated model.
        calls: Calls of it.
        targets: What ``predictions`` gave for them.
        trial: Measures the whole model.
        seed: Seed of the halves.
        progress: Draw a bar.
    """
    if not targets:
        return []
    found = fit_correction(
        model, calls, targets=targets, generate=trial.generate, exact=trial.samples, seed=seed,
        progress=progress,
    )  # fmt: skip
    if not found.count:
        return []
    what = f"bias of the output over time, by {found.judged_by}"
    return [RemedyTrial("correction", found.kept, found.before, found.after, what)]
