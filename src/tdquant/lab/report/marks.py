"""What tells the lines of a plot apart: a colour and, as not everyone sees those, a mark."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = 8
SPARSE = 8
"""Most marks of a line of many values."""

MARKS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "m-3.6-3.6h7.2v7.2h-7.2Z",
    "m0-5l5 5l-5 5l-5-5Z",
    "m0-5l4.8 8.6h-9.6Z",
    "m0 5l4.8-8.6h-9.6Z",
    "m-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4Z",
    "m0-2.3l2.6-2.6l2.3 2.3l-2.6 2.6l2.6 2.6l-2.3 2.3l-2.6-2.6l-2.6 2.6l-2.3-2.3l2.6-2.6l-2.6"
    "-2.6l2.3-2.3Z",
    "m0-5.4l1.5 3.8l4 .2l-3.1 2.6l1 3.9l-3.4-2.2l-3.4 2.2l1-3.9l-3.1-2.6l4-.2Z",
)
"""Paths around a point: circle, square, diamond, triangles up and down, plus, cross, star."""

NEUTRAL = "m-6-1.7h12v3.4h-12Z"
"""The bar of hue -1."""


def colour(hue: int) -> str:
    """The class of the style sheet that has the colour of a hue; grey below 0."""
    return f"c{hue % COLOURS}" if hue >= 0 else "neutral"


def shape(hue: int) -> str:
    """The path of a hue's mark, from its centre. Past the colours, one has another mark."""
    return MARKS[(hue + hue // COLOURS) % len(MARKS)] if hue >= 0 else NEUTRAL


def sparse(values: Sequence[int], place: int, count: int) -> list[int]:
    """A few of many values.

    Arguments:
        values: Which there are.
        place: Of the line among the others, which have their marks a little aside.
        count: How many lines there are.
    """
    stride = max(1, -(-len(values) // SPARSE))
    return list(values[place * stride // count :: stride])
