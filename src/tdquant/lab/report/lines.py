"""A series of a plot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from tdquant.files.documents import Gap, Section

LARGEST = 1e100
"""Largest size of a number that is drawn: axes overflow near the end of float64."""


class Line(Section):
    """One series of a plot, which may come from a study file.

    Attributes:
        name: Its name in the legend.
        x: Positions.
        y: Values; None leaves a gap.
        low: Lower end of an interval around each value, or nothing.
        high: Upper end.
        labels: A word at each point, or nothing.
        dashed: For a baseline: the line is dashed and marks are hollow.
        joined: Whether a stroke joins the values.
        hue: Number of its colour and mark; its place among the lines if None. -1 is grey with a
            mark of its own, for a baseline.
        shown: False for a line without marks and legend entry, which the script may show later.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Gap]
    low: Sequence[Gap] | None = None
    high: Sequence[Gap] | None = None
    labels: Sequence[str] = ()
    dashed: bool | None = None
    joined: bool = True
    hue: int | None = None
    shown: bool = True

    @model_validator(mode="after")
    def _check_lengths(self) -> Line:
        if len({len(values) for values in (self.x, self.y, self.low, self.high) if values}) > 1:
            raise PydanticCustomError("lengths", "has lists of different lengths")
        return self

    @property
    def values(self) -> np.ndarray:
        """Positions, values and both ends of the intervals ``(4, N)``; NaN where there is none."""
        rows = (self.x, self.y, self.low or (), self.high or ())
        found = np.full((4, len(self.x)), np.nan)
        for row, values in zip(found, rows, strict=True):
            row[: len(values)] = np.array(values, dtype=float)
        found[2:] += 0 * found[:1:-1]  # an interval has two ends
        found[np.abs(found) > LARGEST] = np.nan
        return found

    def points(self) -> list[int]:
        """Indices of the values that are not gaps."""
        return np.flatnonzero(np.isfinite(self.values[:2]).all(axis=0)).tolist()
