"""The options of a temporal scale that a recipe takes."""

from __future__ import annotations

from tdquant.scales.encodings import ENCODINGS
from tdquant.support.checks import is_whole

TEMPORAL_OPTIONS = {
    "features": "an even number from 2",
    "hidden": "a number from 1",
    "depth": "a number from 1",
    "dropout": "0 to 1, without 1",
    "encoding": f"one of {', '.join(ENCODINGS)}",
}
"""Options of TemporalScale, and what each can be."""


def check_temporal_option(key: str, value: object) -> list[str]:
    """The mistake in a value of one of the options, if it has one."""
    if key == "encoding":
        good = isinstance(value, str) and value in ENCODINGS
    elif key == "dropout":
        good = isinstance(value, int | float) and 0 <= value < 1
    elif key == "features":
        good = is_whole(value) and value >= 2 and value % 2 == 0  # type: ignore[operator]
    else:
        good = is_whole(value) and value >= 1  # type: ignore[operator]
    return [] if good else [f"temporal[{key!r}]={value!r}: {TEMPORAL_OPTIONS[key]}"]
