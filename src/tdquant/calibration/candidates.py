r"""Candidate curves s(t) of a layer: range estimators at every time and over all times, and what
lies between.

Rounding asks for small steps and clipping for large ones, and how the two weigh at the model's
output differs from layer to layer. Between the mse step and the min-max step of each time the
candidates are

    log s_c(t) = (1 - c) log s_mse(t) + c log s_minmax(t),    c in {0, 1/2, 1}

and the percentile step stands beside them. Each comes in a temporal and in a flat form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.calibration.estimators import best_zero, estimate, one_sided
from tdquant.calibration.histogram import pooled
from tdquant.calibration.time_histograms import TimeHistograms
from tdquant.numerics.grid import Grid
from tdquant.scales import TableScale

BLENDS = (0.0, 0.5, 1.0)
NAMES = ("mse", "between", "minmax", "percentile")


@dataclass(frozen=True)
class Candidate:
    """One curve: the estimator it comes from, and steps at the times that were seen; one knot if
    it is flat.
    """

    estimator: str
    curve: TableScale

    @property
    def kind(self) -> str:
        return "static" if self.curve.static else "temporal"


def choose_grid(seen: TimeHistograms, grid: Grid, symmetric: bool) -> Grid:
    """The grid of an activation: affine at its best zero point if one-sided, else signed; as it
    was if it has to be ``symmetric``.
    """
    if symmetric:
        return grid
    histograms = seen.histograms()
    if not one_sided(pooled(histograms)):
        return Grid.signed(grid.bits)  # whatever an earlier calibration chose
    return best_zero(histograms[:: max(1, len(histograms) // 8)], grid.bits)


def make_candidates(seen: TimeHistograms, grid: Grid, estimator: str) -> list[Candidate]:
    """All curves of one activation, temporal ones first.

    Arguments:
        seen: Histograms over time.
        grid: Codes.
        estimator: One of NAMES, or ``"auto"`` for all.
    """
    temporal = _family(
        torch.tensor([[estimate(h, grid, e) for h in seen.histograms()] for e in _BASIC])
    )
    everything = pooled(seen.histograms())
    static = _family(torch.tensor([[estimate(everything, grid, e)] for e in _BASIC]))
    names = NAMES if estimator == "auto" else (estimator,)
    out = []
    if len(seen.by_time) > 1:
        out += [Candidate(n, TableScale(seen.times(), temporal[n])) for n in names]
    return out + [Candidate(n, TableScale(torch.zeros(1), static[n])) for n in names]


_BASIC = ("mse", "minmax", "percentile")


def _family(steps: Tensor) -> dict[str, Tensor]:
    mse, minmax, percentile = steps
    blends = [(mse.log() * (1 - c) + minmax.log() * c).exp() for c in BLENDS]
    return dict(zip(NAMES, [*blends, percentile], strict=True))
