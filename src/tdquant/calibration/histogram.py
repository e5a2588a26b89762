r"""A streaming histogram of one tensor: all that a range estimator needs, in memory that does not
grow.

Bins of equal width cover ``[-L, L)`` with L a power of two. A value beyond L doubles L, and each
pair of bins is merged into one, exactly, since zero stays a bin edge. From it come the extremes,
quantiles, and the squared error of any step and grid,

    E(s) = sum_i n_i (s clip(round(c_i / s), low, high) - c_i)^2

over bins with centre c_i and count n_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tdquant.errors import CalibrationError

BINS = 4096
LEAST = 2.0**-100
"""The least limit: narrower bins would have a width that float32 rounds to zero."""


class Histogram:
    """Counts of the values seen so far.

    Arguments:
        counts: Memory to count in, ``(BINS,)`` float32; its own if None.

    Attributes:
        counts: ``(BINS,)`` float32, on the CPU.
        limit: L, or 0 before the first value other than zero.
        low: Smallest value seen.
        high: Largest value seen.
        total: Number of values seen.
    """

    __slots__ = ("counts", "high", "limit", "low", "total")

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(BINS) if counts is None else counts.zero_()
        self.limit = 0.0
        self.low, self.high = math.inf, -math.inf
        self.total = 0

    def update(self, x: Tensor) -> None:
        """Adds every element of x.

        Raises:
            CalibrationError: x has NaN or infinite elements.
        """
        x = x.detach().float().flatten()
        low, high = (float(v) for v in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                "NaN or infinite activations",
                fix="run the float model on the same batch and look where they start",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.total += x.numel()
        largest = max(-low, high)
        if largest >= self.limit and largest > 0:
            self.widen(max(2.0 ** (math.floor(math.log2(largest)) + 1), LEAST))
        half = BINS // 2
        width = self.limit / half or 1.0
        index = (x / width).floor_().clamp_(-half, half - 1).add_(half)
        self.counts += torch.bincount(index.to(torch.int32), minlength=BINS).cpu()

    def widen(self, limit: float) -> None:
        """Makes L at least ``limit``, a power of two."""
        if self.limit == 0:
            self.limit = (
                limit  # nothing but zeros so far, and they are in the bin above the edge at zero
            )
        while self.limit < limit:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts.zero_()
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.limit *= 2

    def copy(self) -> Histogram:
        """A histogram that can be changed on its own."""
        new = Histogram()
        new.counts, new.limit = self.counts.clone(), self.limit
        new.low, new.high, new.total = self.low, self.high, self.total
        return new

    def add(self, other: Histogram, weight: float = 1.0) -> None:
        """Adds the counts of another histogram, times ``weight``."""
        other = other.copy()
        limit = max(self.limit, other.limit)
        for histogram in (self, other):
            if limit > 0:
                histogram.widen(limit)
        self.counts += other.counts * weight
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total

    def centres(self) -> Tensor:
        """Bin centres ``(BINS,)``; the outermost never leave the range that was seen."""
        half = BINS // 2
        centres = (torch.arange(-half, half) + 0.5) * (self.limit / half)
        return centres.clamp(self.low, self.high) if self.total else centres

    def quantile(self, q: float) -> float:
        """The value that a share q of the elements does not exceed, to a bin's width."""
        cumulative = self.counts.double().cumsum(0)
        target = torch.tensor(q * float(cumulative[-1]), dtype=torch.float64)
        index = int(torch.searchsorted(cumulative, target).clamp(max=BINS - 1))
        return float(self.centres()[index])


def pooled(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all, each weighted to the same mass: timesteps count alike however often
    they were seen.
    """
    total = Histogram()
    for histogram in histograms:
        mass = float(histogram.counts.sum())
        total.add(histogram, 1.0 / mass if mass else 0.0)
    return total


def squared_error(histogram: Histogram, steps: Tensor, low: int, high: int) -> Tensor:
    """Mean squared quantization error of each of ``steps`` (K,), shape (K,)."""
    mass = histogram.counts
    used = mass.nonzero().squeeze(1)
    if not len(used):
        return torch.zeros(len(steps))
    centres, mass = histogram.centres()[used], mass[used]
    s = steps[:, None]
    error = torch.div(centres, s).round_().clamp_(low, high).mul_(s).sub_(centres).square_()
    return error @ (mass / mass.sum())
