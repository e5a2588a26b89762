"""``fit_correction``: corrects a live model's output if samples that had no part in the fit say
that it helps.

The errors of a sample before and after, e_i and e'_i, differ by a factor; most samples by a little
and, where one tips over into another image, a few by much. A correction stays if

    mean(r) < -max(se(r), m),  r_i = log(e'_i / e_i),     and     mean(e') <= mean(e)

with the standard error of the mean over samples: a factor that chance can give decides nothing.
For single calls m is MARGIN. The share of their error that is the same in all steps is small even
where it is most of what adds up over a trajectory; below the margin, it no longer is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call
from tdquant.calls.observing import in_float
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.freezing import check_calibrated, is_frozen
from tdquant.layers.correction import correction_of
from tdquant.refine.correction.fit import Tables, solve
from tdquant.refine.correction.moments import Collector, Moments, predicted
from tdquant.refine.correction.run import check_gain, install
from tdquant.state import note
from tdquant.support.progress import track
from tdquant.support.restoring import changes_model, evaluating

MARGIN = 0.01
"""Least improvement of calls. A bias that takes hundredths off the squared error of single calls,
as of 4-bit weights that were rounded to nearest, can take a quarter or more off that of samples;
one that takes thousandths, as of 8-bit weights or codes by gptq, changes them by chance.
"""


@dataclass(frozen=True)
class CorrectionReport:
    """What ``fit_correction`` found.

    Attributes:
        kept: Whether the model has the correction.
        judged_by: ``"samples"`` that were generated, or held-out ``"calls"``.
        count: Number of samples that decided.
        before: Geometric mean of their squared errors without the correction; of calls, relative
            to the mean at each time.
        after: With it.
        mean_before: Arithmetic mean without it.
        mean_after: With it.
        change: ``mean(r)``, the logarithm of the factor between the two.
        error: Its standard error.
        facts: The correction's least and largest gain and its largest bias.
    """

    kept: bool
    judged_by: str
    count: int
    before: float
    after: float
    mean_before: float
    mean_after: float
    change: float
    error: float
    facts: dict[str, Any]

    def __str__(self) -> str:
        if not self.count:
            return f"correction of the output left out: no {self.judged_by} to decide by"
        verdict = "kept" if self.kept else "left out"
        return (
            f"correction of the output {verdict}: error of {self.count} {self.judged_by} "
            f"{self.before:.3g} -> {self.after:.3g} (x{math.exp(self.change):.3f}, standard error "
            f"{self.error:.3f}), mean {self.mean_before:.3g} -> {self.mean_after:.3g}"
        )


@changes_model
@torch.no_grad()
def fit_correction(
    model: nn.Module,
    calls: Iterable[Call],
    *,
    teacher: Callable[..., Any] | None = None,
    targets: Sequence[Tensor] | None = None,
    generate: Callable[[nn.Module], Tensor] | None = None,
    exact: Tensor | None = None,
    gain: str = "none",
    bias: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> CorrectionReport:
    """Fits a correction of a calibrated model's output, in place, and keeps it only if it helps
    samples that had no part in the fit.

    Each half of the samples of the calls decides on the fit to the other, by the squared error of
    calls; whole trajectories go to a half. With ``generate``, generated samples have to agree. The
    model gets the fit to all calls.

    Arguments:
        model: A calibrated model. A correction that it has is fitted anew. ``freeze`` keeps the
            correction; calibrating, reconstructing or training the model again drops it.
        calls: Calls, as for ``calibrate``; they are kept in memory. Several samples at each time.
        teacher: The float model; the model itself without quantization if None, which is the same
            as long as nothing has changed its weights or biases.
        targets: The float model's predictions for the calls, in place of ``teacher``.
        generate: Samples with the model that it is given, from fixed noise that is not that of the
            calls. An improvement that shows is about 10 % with 64 samples, 20 % with 16.
        exact: What ``generate(teacher)`` gives, if that is known.
        gain: As for ``correct``. Calls are not asked about ``"energy"``, which raises their error,
            if samples can be generated.
        bias: As for ``correct``.
        seed: Seed of the halves.
        progress: Draw a bar.

    Returns:
        The report. The history of a corrected model records it.

    Raises:
        CalibrationError: No calls, fewer or more targets, predictions that are not finite or not
            one tensor, scales that are not calibrated, or a frozen model without its float model.
            The model is then left as it was.
        ConversionError: The model is not quantized.
    """
    clock = clock_of(model)
    check_gain(gain)
    check_calibrated(model, "fit_correction")
    if is_frozen(model) and teacher is None and targets is None:
        raise CalibrationError(
            "no float model to correct against",
            where="fit_correction",
            why="a frozen model has no float weights",
            fix="teacher=, or the live model",
        )
    if (before := correction_of(model)) is not None:
        before.detach(model)
    calls = list(calls)
    if targets is None:
        targets = _targets(model, teacher, calls, progress)
    if len(targets) != len(calls):
        raise CalibrationError(
            f"{len(targets)} targets of {len(calls)} calls",
            where="fit_correction",
            fix="the float model's prediction for each call, in order",
        )
    found = Collector(model, clock)
    with evaluating(model):
        for call, y in track(zip(calls, targets, strict=True), "correcting", len(calls), progress):
            found.add(call, predicted(model, call), y.float())
    moments, bias = found.moments(), bias and found.layout.axis is not None
    tables = solve(moments, gain, bias)

    def attach() -> None:
        install(model, clock, tables, found.layout)

    report = _decide(*_held_out(moments, gain, bias, seed), "calls", tables)
    asked = report.count > 0 and gain != "energy"
    if generate is not None and (report.kept or not asked):
        if exact is None:
            exact = _generated(model, teacher, generate)
        report = _decide(*_sample_errors(model, generate, exact, attach), "samples", tables)
    if report.kept:
        attach()
        facts = {"error before": report.before, "error after": report.after}
        note(model, "correct", **report.facts, judged_by=report.judged_by, **facts)
    return report


def _targets(
    model: nn.Module, teacher: Callable[..., Any] | None, calls: list[Call], progress: bool
) -> list[Tensor]:
    with _exact_runs(model, teacher):
        shown = track(calls, "float predictions", show=progress)
        return [predicted(teacher or model, call) for call in shown]


def _generated(
    model: nn.Module, teacher: Callable[..., Any] | None, generate: Callable[..., Tensor]
) -> Tensor:
    with _exact_runs(model, teacher):
        return generate(teacher or model)  # type: ignore[arg-type]


@contextlib.contextmanager
def _exact_runs(model: nn.Module, teacher: Callable[..., Any] | None) -> Iterator[None]:
    """Runs the float model: the teacher, or the model itself."""
    with evaluating(teacher or model), contextlib.nullcontext() if teacher else in_float(model):
        yield


def _sample_errors(
    model: nn.Module,
    generate: Callable[[nn.Module], Tensor],
    exact: Tensor,
    attach: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Squared errors of generated samples without and with the correction, which is off again
    afterwards.
    """

    def errors() -> Tensor:
        with evaluating(model):
            return (generate(model) - exact).double().square().flatten(1).mean(1)

    before = errors()
    attach()
    after = errors()
    correction = correction_of(model)
    assert correction is not None
    correction.detach(model)
    return before, after


def _held_out(moments: Moments, gain: str, bias: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Squared errors of the samples of calls without and with a correction that was fitted to the
    other half of them: means over times, relative to the mean error there.
    """
    known = moments.samples.unique()
    order = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    parts: list[tuple[Tensor, Tensor]] = []
    for fitted, judged in (halves, halves[::-1]):
        if not len(fitted):
            return torch.zeros(0, dtype=torch.float32), torch.zeros(0, dtype=torch.float32)
        rows = moments.of(judged)
        tables = solve(moments.of(fitted), gain, bias)
        nothing = Tables(tables.knots, torch.ones_like(tables.gains))
        before, after = nothing.errors(rows), tables.errors(rows)
        _, place, counts = rows.times.unique(return_inverse=True, return_counts=True)
        total = torch.zeros(len(counts), dtype=torch.float32).double().index_add_(0, place, before)
        weight = (counts / total.clamp(min=1e-300))[place]
        for sample in judged:
            own = rows.samples == sample
            parts.append(((before * weight)[own].mean(), (after * weight)[own].mean()))
    return torch.stack([b for b, _ in parts]), torch.stack([a for _, a in parts])


def _decide(before: Tensor, after: Tensor, judged_by: str, tables: Tables) -> CorrectionReport:
    count = len(before)
    if not count:
        nan = float("nan")
        return CorrectionReport(False, judged_by, 0, nan, nan, nan, nan, nan, nan, tables.facts())
    logs = [e.clamp(min=1e-300).log() for e in (before, after)]
    change = logs[1] - logs[0]
    error = float(change.std() / count**0.5) if count > 1 else float("inf")
    mean = float(change.mean())
    margin = max(error, MARGIN if judged_by == "calls" else 0.0)
    kept = mean < -margin and bool(after.mean() <= before.mean())
    return CorrectionReport(
        kept,
        judged_by,
        count,
        float(logs[0].mean().exp()),
        float(logs[1].mean().exp()),
        float(before.mean()),
        float(after.mean()),
        mean,
        error,
        tables.facts(),
    )
