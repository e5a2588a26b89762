r"""Ratios of paired errors with their intervals, and what they say: the rules of verdicts.

With ``e_ji`` the error of image i under calibration seed j with something, ``f_ji`` without it,
both from the same noise and calls, and T the logarithm of their geometric mean, mean or median,

    log R = T(e) - T(f),    interval of 95 %:  quantiles of  log R + d_r + t_r se

- ``d_r``: deviations of log R over draws r of the images with replacement.
- ``se``: standard error of log R over the J seeds, each taken alone; ``t_r`` are draws of
  Student's distribution of J - 1 degrees of freedom. Draws of three seeds with replacement would
  be ten different ones: their variance is too small by a third and has no tails.

References:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 10 and 13.
    Owen, The pigeonhole bootstrap, 2007 (https://arxiv.org/abs/0712.1111), for two crossed causes
    of variation: adding both counts what they share twice, which errs on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tdquant.lab.metrics.bootstrap import draws, interval

HELPS, HURTS = "time helps", "time hurts"
USELESS, OPEN = "time does not help", "not decided"
VERDICTS = (HURTS, USELESS, OPEN, HELPS)
"""Negative ones first, as they are shown."""

LEAST = 1.05
"""Ratio below which nothing is a difference, however sure it is."""

SEEDS = 3
"""Fewest seeds of calibration for a verdict."""

MANY = 200
"""Draws of Student's distribution for each quantile."""

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "geometric": lambda e: e.log().mean((-2, -1)),
    "mean": lambda e: e.mean((-2, -1)).log(),
    "median": lambda e: e.flatten(-2).quantile(0.5, -1).log(),
}
"""Logarithms of statistics of errors ``(*, J, I)`` over seeds and images."""


@dataclass(frozen=True)
class Ratio:
    """A ratio and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two arms.

    Attributes:
        ratios: By statistic.
        threshold: Ratio beyond which a difference counts: more than another seed of calibration
            makes of either arm.
        seeds: Number of seeds.
    """

    ratios: dict[str, Ratio]
    threshold: float
    seeds: int

    @property
    def verdict(self) -> str:
        """What the ratios say, one of VERDICTS: see ``judged``."""
        return judged(self.ratios["geometric"], self.ratios["mean"], self.threshold, self.seeds)


def compared(errors: Tensor, without: Tensor, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compares errors ``(J, I)`` of one arm with those of another, same seeds and images."""
    errors, without = errors.double(), without.double()
    rows = draws(errors.shape[1], resamples, seed)
    drawn, base = (e[:, rows].movedim(0, 1) for e in (errors, without))
    wild = _student(len(errors) - 1, resamples, seed)
    ratios = {}
    for name, statistic in STATISTICS.items():
        value = statistic(errors) - statistic(without)
        found = statistic(drawn) - statistic(base)
        if len(errors) > 1:
            alone = statistic(errors[:, None]) - statistic(without[:, None])
            found = found + wild * alone.std() / math.sqrt(len(errors))
        ends = interval(float(value), found)
        ratios[name] = Ratio(*(math.exp(end) for end in (ends.value, ends.low, ends.high)))
    spread = max(_spread(errors), _spread(without))
    return Comparison(ratios, max(LEAST, math.exp(spread)), len(errors))


def judged(typical: Ratio, mean: Ratio, threshold: float, seeds: int) -> str:
    """The verdict on a ratio of errors, with time over without.

    - *time helps*: the geometric mean's interval is below 1, its ratio beyond the threshold, and
      the ratio of means below 1.
    - *time hurts*: the same above 1.
    - *time does not help*: a gain that counts, beyond LEAST, is outside both intervals.
    - *not decided*: the intervals are too wide for any of these, another seed makes as much of a
      difference, the two statistics contradict each other, or there are fewer than SEEDS seeds.

    Arguments:
        typical: Ratio of geometric means.
        mean: Ratio of means.
        threshold: Ratio beyond which a difference counts.
        seeds: Number of seeds.
    """
    if seeds < SEEDS:
        return OPEN
    if typical.high < 1 and typical.value < 1 / threshold:
        return HELPS if mean.value < 1 else OPEN
    if typical.low > 1 and typical.value > threshold:
        return HURTS if mean.value > 1 else OPEN
    return USELESS if min(typical.low, mean.low) > 1 / LEAST else OPEN


def _spread(errors: Tensor) -> float:
    """Standard deviation over seeds of the logarithm of an arm's geometric mean."""
    alone = STATISTICS["geometric"](errors[:, None])
    return float(alone.std()) if len(errors) > 1 else 0.0


@cache
def _student(freedom: int, count: int, seed: int) -> Tensor:
    """Student's distribution, ``(R,)``: quantiles of many draws in random order, since the tails
    of R draws are a few of them.
    """
    rng = torch.Generator().manual_seed(seed + 1)
    normal = torch.randn(count * MANY, max(freedom, 1) + 1, generator=rng, dtype=torch.float64)
    found = normal[:, 0] / normal[:, 1:].square().mean(1).sqrt()
    quantiles = found.sort().values[MANY // 2 :: MANY]
    return quantiles[torch.randperm(count, generator=rng)]
