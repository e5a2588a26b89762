r"""Candidate curves s(t) of a layer: range estimators at every time and over all times.

Rounding asks for small steps and clipping for large ones, and their relative weight at the model's
output differs from layer to layer. Between the mse step and the min-max step of each time the
candidates are

    log s_c(t) = (1 - c) log s_mse(t) + c log s_minmax(t),    c in {0, 1/2, 1}

beside the percentile step. Each comes in a temporal and a static form. Samples that calibration
has not seen reach further than its own, which c = 3/2 leaves room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.calibration.estimators import best_zero, estimate, one_sided
from tdquant.calibration.histogram import pooled
from tdquant.calibration.time_histograms import TimeHistograms
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import TableScale

BLENDS = {"mse": 0.0, "between": 0.5, "minmax": 1.0}
HEADROOM = "headroom"
NAMES = (*BLENDS, "percentile")
_BASIC = ("mse", "minmax", "percentile")


@dataclass(frozen=True)
class Candidate:
    """One curve: the estimator that it comes from, its steps at the times that were seen (one knot
    if it is static), and its codes.
    """

    estimator: str
    curve: TableScale
    grid: Grid

    @property
    def kind(self) -> str:
        return "static" if self.curve.static else "temporal"

    def quantize(self, x: Tensor, timestep: Tensor, batch: BatchAxis | None = None) -> Tensor:
        """The activation x, fake-quantized at the time ``()`` or times ``(B,)``."""
        step = expand_scale(self.curve.to(x.device)(timestep, x, self.grid), x, batch)
        return fake_quantize(x, step, self.grid.low, self.grid.high)


def choose_grid(seen: TimeHistograms, grid: Grid, symmetric: bool) -> Grid:
    """The grid of an activation: affine at its best zero point if the activation is one-sided,
    else signed; unchanged if it has to be ``symmetric``.
    """
    if symmetric:
        return grid
    histograms = seen.histograms()
    if not one_sided(pooled(histograms)):
        return Grid.signed(grid.bits)  # whatever an earlier calibration chose
    return best_zero(histograms[:: max(1, len(histograms) // 8)], grid.bits)


def make_candidates(
    seen: TimeHistograms,
    grid: Grid,
    estimator: str,
    static: bool = False,
    headroom: bool = False,
) -> list[Candidate]:
    """All curves of one activation, temporal ones first.

    Arguments:
        seen: Histograms over time.
        grid: Codes.
        estimator: One of NAMES, or ``"auto"`` for all.
        static: Only curves that are the same at every time.
        headroom: With ``"auto"``, curves that leave room beyond all that was seen too.

    Returns:
        For each kind the curves from the narrowest to the widest, then the percentile's.
    """
    histograms = seen.histograms()
    blends = BLENDS | {HEADROOM: 1.5} if headroom else BLENDS
    names = (*blends, "percentile") if estimator == "auto" else (estimator,)
    over_time = [[estimate(h, grid, e) for h in histograms] for e in _BASIC]
    everything = pooled(histograms)
    curves = [
        (torch.zeros(1, dtype=torch.float32), [[estimate(everything, grid, e)] for e in _BASIC])
    ]
    if len(histograms) > 1 and not static:
        curves.insert(0, (seen.times(), over_time))
    found = []
    for knots, steps in curves:
        mse, minmax, percentile = torch.tensor(steps, dtype=torch.float32)
        by_name = {n: (mse.log() * (1 - c) + minmax.log() * c).exp() for n, c in blends.items()}
        by_name["percentile"] = percentile
        found += [Candidate(n, TableScale(knots, by_name[n]), grid) for n in names]
    return found
