"""Axes of plots: where a number lies, and which numbers are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tdquant.lab.report.numerals import is_number


@dataclass(frozen=True)
class Axis:
    """A map of numbers to positions, linear in the number or in its logarithm.

    Attributes:
        low: Number at ``start``.
        high: Number at ``end``.
        start: Position, in units of the drawing.
        end: Position; smaller than ``start`` where the axis goes up.
        log: Whether it is the logarithm that is linear.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a number."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """At most ``most`` round numbers on the axis, or two."""
        if self.log:
            found = _log_ticks(self.low, self.high, most)
            if len(found) >= 2:
                return found
        return _round_ticks(self.low, self.high, most)


def fit_axis(
    values: Iterable[float | None],
    start: float,
    end: float,
    log: bool = False,
    margin: float = 0.05,
) -> Axis:
    """The axis that holds all values with a margin.

    Arguments:
        values: Numbers; None and what is not finite are left out.
        start: Position of the low end.
        end: Position of the high end.
        log: Logarithmic, if all values are positive.
        margin: Share of the range that is added at both ends.
    """
    numbers = [float(v) for v in values if is_number(v)]  # type: ignore[arg-type]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    log = log and low > 0
    if log:
        low, high = math.log(low), math.log(high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        reach = 0.5 if log else (abs(low) / 2 or 0.5)
    else:
        reach = margin * (high - low)
    positive = low >= 0 and not log
    low, high = low - reach, high + reach
    if positive:
        low = max(low, 0.0)
    if log:
        low, high = math.exp(low), math.exp(high)
    return Axis(low, high, start, end, log)


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    power = math.floor(math.log10((high - low) / most))
    for exponent in (power, power + 1, power + 2):
        for mantissa in (1, 2, 5):
            width = mantissa * 10.0**exponent
            first, last = math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9)
            if last - first < most:
                return [round(i * width, max(0, -exponent)) for i in range(first, last + 1)]
    return [low, high]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**p for p in powers for m in mantissas]
        found = [v for v in every if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
