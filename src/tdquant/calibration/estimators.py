r"""Range estimators: the step of an activation from its histogram, by min-max, percentile or mse.

min-max holds every value seen, percentile all but a share p of them on either side, and mse
minimises the squared error over a geometric family of fractions of the min-max step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tdquant.calibration.histogram import Histogram, squared_error
from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid

PERCENTILE = 99.9
# 1 down to 0.025 of the min-max step
_FRACTIONS = torch.logspace(0, -1.6, 65, dtype=torch.float32)


def _holding(low: float, high: float, grid: Grid) -> float:
    """The least step whose grid reaches from ``low`` to ``high``, as far as the grid has codes on
    that side.
    """
    step = high / grid.high if grid.high > 0 else 0.0
    if grid.low < 0:
        step = max(step, low / grid.low)
    return max(step, FLOOR)


def minmax(histogram: Histogram, grid: Grid) -> float:
    """The least step that clips nothing."""
    return _holding(histogram.low, histogram.high, grid)


def percentile(histogram: Histogram, grid: Grid) -> float:
    """The least step that clips at most 0.1 % of the values on either side."""
    share = PERCENTILE / 100
    return _holding(histogram.quantile(1 - share), histogram.quantile(share), grid)


def mse(histogram: Histogram, grid: Grid) -> float:
    """The step with the least squared error."""
    steps = (minmax(histogram, grid) * _FRACTIONS).clamp(min=FLOOR)
    return float(steps[squared_error(histogram, steps, grid.low, grid.high).argmin()])


ESTIMATORS: dict[str, Callable[[Histogram, Grid], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}


def estimate(histogram: Histogram, grid: Grid, estimator: str = "mse") -> float:
    """The step that the named estimator chooses."""
    return ESTIMATORS[estimator](histogram, grid)


def one_sided(histogram: Histogram, bound: float = 0.3) -> bool:
    """Whether the negative part is bounded as after SiLU (-0.2785), GELU (-0.17), ReLU or softmax
    (0).

    A tensor that is small altogether is not: its positive part must reach at least twice as far.
    """
    return histogram.low >= -bound and histogram.high > -2 * histogram.low


def best_zero(histograms: list[Histogram], bits: int) -> Grid:
    """The affine grid whose zero point gives the least error over all histograms, each at its own
    best step.
    """
    highest = 2**bits // 4
    candidates = sorted({round(highest * i / 12) for i in range(13)})
    grids = [Grid.affine(bits, zero) for zero in candidates]

    def error(grid: Grid) -> float:
        total = 0.0
        for histogram in histograms:
            steps = (minmax(histogram, grid) * _FRACTIONS[::4]).clamp(min=FLOOR)
            total += float(squared_error(histogram, steps, grid.low, grid.high).min())
        return total

    return min(grids, key=error)
