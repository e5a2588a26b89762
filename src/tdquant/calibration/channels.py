"""Extremes of the channels of an activation over time, of two halves of the samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.calibration.time_histograms import rows_by_time
from tdquant.numerics.batch_axis import BatchAxis

MAX_TIMES = 16
"""Times kept apart; of more, the two neighbours that are nearest are merged."""


@dataclass
class _Extremes:
    """Extremes of channels at some times.

    Attributes:
        low, high: Of the two halves of the samples, ``(2, C)``.
        first, last: The times.
        count: Samples seen.
    """

    low: Tensor
    high: Tensor
    first: float
    last: float
    count: int = 0

    def add(self, other: _Extremes) -> None:
        self.low = self.low.minimum(other.low)
        self.high = self.high.maximum(other.high)
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.count += other.count


class ChannelRanges:
    """Extremes of each channel of one activation over time. Every second sample belongs to the
    other half: how far the halves differ tells how far samples that were not seen may reach.

    Arguments:
        dimension: That of the channels, counted from the end.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._by_time: dict[float, _Extremes] = {}

    def update(self, x: Tensor, timestep: Tensor, batch: BatchAxis | None = None) -> None:
        """Adds an activation; arguments as for ``TimeHistograms.update``."""
        if not x.numel():
            return
        for time, rows in rows_by_time(x, timestep, batch)[0]:
            seen = self._by_time.get(time)
            turn = seen.count % 2 if seen else 0
            low, high = self._extremes(rows.detach(), turn)
            found = _Extremes(low, high, time, time, len(rows))
            if seen:
                seen.add(found)
            else:
                self._by_time[time] = found
            if len(self._by_time) > MAX_TIMES:
                self._merge()

    def _extremes(self, rows: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        others = [d for d in range(rows.ndim) if d != rows.ndim + self.dimension]
        lows, highs = [], []
        for half in (turn, 1 - turn):
            some = rows[half::2] if rows.ndim > 1 else rows[:0]
            if len(some):
                lows.append(some.amin(others).float().cpu())
                highs.append(some.amax(others).float().cpu())
            else:
                channels = rows.shape[self.dimension]
                lows.append(torch.full((channels,), torch.inf, dtype=torch.float32))
                highs.append(torch.full((channels,), -torch.inf, dtype=torch.float32))
        return torch.stack(lows), torch.stack(highs)

    def _merge(self) -> None:
        times = sorted(self._by_time)
        spans = [
            self._by_time[b].last - self._by_time[a].first for a, b in itertools.pairwise(times)
        ]
        i = spans.index(min(spans))
        self._by_time[times[i]].add(self._by_time.pop(times[i + 1]))

    def part(self, start: int, size: int) -> ChannelRanges:
        """The ranges of ``size`` channels from ``start``."""
        made, here = ChannelRanges(self.dimension), slice(start, start + size)
        made._by_time = {
            time: _Extremes(one.low[:, here], one.high[:, here], one.first, one.last, one.count)
            for time, one in self._by_time.items()
        }
        return made

    def in_steps(self, step: Callable[[float], float]) -> tuple[Tensor, Tensor]:
        """The extremes of ``x / step(t)`` over all times, of both halves, ``(2, C)`` each; 0 where
        a half has no samples. Where times were merged, the finer of the steps at both ends counts.
        """
        lows, highs = [], []
        for one in self._by_time.values():
            finest = min(step(one.first), step(one.last))
            lows.append(one.low / finest)
            highs.append(one.high / finest)
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        return low.clamp(max=0), high.clamp(min=0)
