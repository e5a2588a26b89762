"""Histograms of an activation over time, and the range of times."""

from __future__ import annotations

import torch
from torch import Tensor

from tdquant.calibration.histogram import BINS, Histogram
from tdquant.errors import CalibrationError
from tdquant.numerics.batch_axis import BatchAxis, axis_of
from tdquant.numerics.fake_quantize import FLOOR
from tdquant.scales.table import wide_range

MAX_TIMES = 64
"""Times kept apart; of more, the nearest two are merged, to bound memory."""

ENOUGH_TIMES = 4
"""Times of which fewer say little about a curve over time."""


class TimeHistograms:
    """Histograms of one activation, one for each time seen, at most MAX_TIMES of them.

    Attributes:
        by_time: Time -> histogram.
        mixed: Whether times were mixed in a tensor whose samples cannot be told apart: its
            histograms are then of no time.
    """

    def __init__(self) -> None:
        self.by_time: dict[float, Histogram] = {}
        self._whole = True  # all times were integers
        self.mixed = False
        # One block for all, allocated before the first activation: small blocks that stay, among
        # large ones that are freed, would fragment the heap.
        self._free = list(torch.zeros(MAX_TIMES + 1, BINS, dtype=torch.float32))

    @property
    def all_zero(self) -> bool:
        """Whether nothing but zeros, or what any step rounds to zero, was seen."""
        return not self._telling()

    def update(self, x: Tensor, timestep: Tensor, batch: BatchAxis | None = None) -> None:
        """Adds an activation.

        Arguments:
            x: The activation.
            timestep: Its time ``()`` or times ``(B,)``.
            batch: Where its samples lie.
        """
        if not x.numel():
            return
        parts, mixed = rows_by_time(x, timestep, batch)
        self.mixed = self.mixed or mixed
        for time, rows in parts:
            self._whole = self._whole and time == round(time)
            if time not in self.by_time:
                self.by_time[time] = Histogram(self._free.pop())
            self.by_time[time].update(rows)
            if len(self.by_time) > MAX_TIMES:
                self._merge_nearest()

    def _merge_nearest(self) -> None:
        times = torch.tensor(sorted(self.by_time), dtype=torch.float64)
        wide = not self._whole and wide_range(float(times[0]), float(times[-1]))
        i = int((times.log() if wide else times).diff().argmin())
        left, right = times[i].item(), times[i + 1].item()
        a, b = self.by_time.pop(left), self.by_time.pop(right)
        middle = (left * a.total + right * b.total) / (a.total + b.total)
        a.add(b)
        self._free.append(b.counts)
        self.by_time[middle] = a

    def times(self) -> Tensor:
        """The times that say something about the step, increasing, ``(K,)``."""
        return torch.tensor(self._telling(), dtype=torch.float32)

    def histograms(self) -> list[Histogram]:
        """The histograms in the order of ``times``."""
        return [self.by_time[t] for t in self._telling()]

    def _telling(self) -> list[float]:
        """Without the times at which everything was zero, or rounds to zero at any step: a curve
        through the least step there would be wrong at the times beside them.
        """
        return [t for t in sorted(self.by_time) if self.by_time[t].limit > FLOOR]


def rows_by_time(
    x: Tensor, timestep: Tensor, batch: BatchAxis | None = None
) -> tuple[list[tuple[float, Tensor]], bool]:
    """The samples of an activation at each of its times, and whether they cannot be told apart:
    then all of them at the mean time.

    Arguments:
        x: The activation.
        timestep: Its time ``()`` or times ``(B,)``.
        batch: Where its samples lie.
    """
    times = timestep.detach().float().flatten()
    unique = times.unique()
    if len(unique) == 1:
        return [(float(unique), x)], False
    axis = axis_of(x, len(times), batch)
    if axis is None:
        return [(float(times.mean()), x)], True
    samples = axis.by_sample(x, len(times))
    return [(time, samples[(times == time).to(x.device)]) for time in unique.tolist()], False


class TimeRange:
    """The range of the times seen, and whether they are integers.

    Attributes:
        distinct: The times themselves, until there are ENOUGH_TIMES of them.
    """

    def __init__(self) -> None:
        self.low, self.high, self.integer = float("inf"), float("-inf"), True
        self.distinct: set[float] = set()

    def update(self, timestep: Tensor) -> None:
        """Takes in the times of one call."""
        t = timestep.detach().double()
        if not t.isfinite().all():
            raise CalibrationError("a timestep that is NaN or infinite", where="batches")
        self.low, self.high = min(self.low, float(t.min())), max(self.high, float(t.max()))
        self.integer = self.integer and bool((t == t.round()).all())
        if len(self.distinct) < ENOUGH_TIMES:
            self.distinct.update(t.unique()[:ENOUGH_TIMES].tolist())

    def resolve(self) -> tuple[float, float]:
        """``(0, T-1)`` for training indices, T at least 1000, from the lowest if one is negative;
        else the range that was seen.
        """
        if self.integer and self.high > 1:
            return min(0.0, self.low), max(999.0, self.high)
        if self.low == self.high:
            return self.low - 0.5, self.high + 0.5
        return self.low, self.high
