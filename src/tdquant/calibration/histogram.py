r"""A streaming histogram of one tensor, in bounded memory.

Bins of equal width cover ``[-L, L)`` with L a power of two. A value beyond L doubles L and merges
each pair of bins into one, exactly, since zero stays a bin edge. It gives the extremes, quantiles,
and the squared error of any step and grid,

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
"""Least limit: float32 rounds the width of narrower bins to zero."""


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
        self.counts = torch.zeros(BINS, dtype=torch.float32) if counts is None else counts.zero_()
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
            self._widen(max(2.0 ** (math.floor(math.log2(largest)) + 1), LEAST))
        half = BINS // 2
        width = self.limit / half or 1.0
        index = (x / width).floor_().clamp_(-half, half - 1).add_(half)
        self.counts += torch.bincount(index.to(torch.int32), minlength=BINS).cpu()

    def _widen(self, limit: float) -> None:
        """Makes L at least ``limit``, a power of two."""
        if self.limit == 0:
            self.limit = limit  # nothing but zeros so far: they are in the bin above zero
        while self.limit < limit:
            self.counts.copy_(_merge_pairs(self.counts))
            self.limit *= 2

    def add(self, other: Histogram, weight: float = 1.0) -> None:
        """Adds the counts of another histogram, times ``weight``."""
        if other.limit > 0:
            self._widen(other.limit)
        counts, limit = other.counts, other.limit or self.limit
        while limit < self.limit:
            counts, limit = _merge_pairs(counts), 2 * limit
        self.counts += counts * weight
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total

    def centres(self) -> Tensor:
        """Bin centres ``(BINS,)``; the outermost never leave the range that was seen."""
        half = BINS // 2
        centres = (torch.arange(-half, half, dtype=torch.float32) + 0.5) * (self.limit / half)
        return centres.clamp(self.low, self.high) if self.total else centres

    def quantile(self, q: float) -> float:
        """The value that a share q of the elements does not exceed, to a bin's width."""
        cumulative = self.counts.double().cumsum(0)
        target = torch.tensor(q * float(cumulative[-1]), dtype=torch.float64)
        index = int(torch.searchsorted(cumulative, target).clamp(max=BINS - 1))
        return float(self.centres()[index])


def _merge_pairs(counts: Tensor) -> Tensor:
    """The counts in bins of twice the width."""
    merged = torch.zeros_like(counts)
    merged[BINS // 4 : 3 * BINS // 4] = counts.view(-1, 2).sum(1)
    return merged


def pooled(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all, each normalized to the same mass: timesteps count alike however often
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
        return torch.zeros(len(steps), dtype=torch.float32)
    centres, mass = histogram.centres()[used], mass[used]
    s = steps[:, None]
    error = torch.div(centres, s).round_().clamp_(low, high).mul_(s).sub_(centres).square_()
    return error @ (mass / mass.sum())
