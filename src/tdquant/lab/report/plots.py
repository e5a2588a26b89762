"""Plots: lines with bands or points with whiskers, a readout, and the same numbers as a table.

Keyboards and screen readers read a plot with a hidden slider under it; the page's script moves
that slider for a pointer too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tdquant.lab.report.drawing import BOTTOM, HEIGHT, TOP, WIDTH, colour, draw, symbol
from tdquant.lab.report.lines import Line
from tdquant.lab.report.numerals import interval, numeral
from tdquant.lab.report.templating import render

if TYPE_CHECKING:
    from markupsafe import Markup


def plot(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    x_words: Sequence[str] = (),
    x_log: bool = False,
    y_log: bool = False,
    points: bool = False,
    bars: bool = False,
    note: str = "",
    heading: int = 4,
    name: str = "",
) -> Markup:
    """A figure with title, legend, drawing, readout, and a table of the numbers that unfolds.

    Arguments:
        title: What is plotted.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        lines: The series, distinguished by colour, mark and name.
        x_words: Names of the positions 0, 1, ... of a horizontal axis without numbers. Values are
            marked and not joined, each hue in a column of its own.
        x_log: Logarithmic, if all numbers are positive.
        y_log: The same for the vertical axis.
        points: Mark every value; otherwise, where there are several lines, some of each.
        bars: Draw bars from zero to the values above words, which are in one column.
        note: A line underneath.
        heading: Level of the title.
        name: A class by which the script knows this plot.

    Raises:
        MissingDependencyError: matplotlib or Jinja2 is not installed.
    """
    points = points or bool(x_words)
    lines = [
        s if s.hue is not None else s.model_copy(update={"hue": k}) for k, s in enumerate(lines)
    ]
    drawn = _in_columns(lines) if x_words and not bars else lines
    svg, at = draw(drawn, x_label, y_label, x_words, x_log, y_log, points, bars)
    shown = [line for line in lines if line.shown]
    rows = readings(shown, at, x_label, x_words)
    values = [dict(zip(line.x, line.y, strict=True)) for line in shown]
    there = sorted({line.x[i] for line in shown for i in line.points()})
    return render(
        "plot",
        title=title,
        name=name,
        heading=heading,
        note=note,
        about=f"{title}. {y_label} against {x_label}, for {', '.join(s.name for s in shown)}.",
        entries=[
            _legend_entry(line, points or len(drawn) > 1, bars) for line in drawn if line.shown
        ],
        svg=svg,
        box=(WIDTH, HEIGHT, TOP, BOTTOM),
        rows=rows,
        heads=[x_label, *(line.name for line in shown)],
        numbers=[
            [_word(x, x_words), *(numeral(v[x]) if x in v else "" for v in values)] for x in there
        ],
    )


def _legend_entry(line: Line, marked: bool, bars: bool) -> dict[str, Any]:
    marked = marked or len(line.points()) == 1
    return {
        "name": line.name,
        "bar": bars,
        "classes": f"{colour(line.hue or 0)}{' dashed' if line.dashed else ''}",
        "symbol": symbol(line.hue or 0) if marked and not bars else "",
        "joined": line.joined,
    }


def readings(
    lines: Sequence[Line], at: Callable[[float], float], label: str, words: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The readout at every x: its position, a head, and the hue and text of each series."""
    found: dict[float, list[list[Any]]] = {}
    for place, line in enumerate(lines):
        low, high = line.values[2:]
        for i in line.points():
            text = f"{line.name}: " if len(lines) > 1 or line.labels else ""
            text += f"{line.labels[i]}, " if i < len(line.labels) else ""
            text += numeral(line.y[i])
            if np.isfinite(low[i]):
                text += f" ({interval(float(low[i]), float(high[i]))})"
            hue = place if line.hue is None else line.hue
            found.setdefault(float(line.x[i]), []).append([hue, text])
    return [
        {"at": at(x), "head": f"{label} {_word(x, words)}", "items": items}
        for x, items in sorted(found.items())
    ]


def _word(x: float, words: Sequence[str]) -> str:
    return words[int(x)] if words else numeral(x)


def _in_columns(lines: Sequence[Line]) -> list[Line]:
    """Lines over words, each hue shifted to a column of its own."""
    hues = sorted({line.hue for line in lines if line.hue is not None})
    width = 0.8 / max(len(hues), 1)
    shift = {hue: (i - (len(hues) - 1) / 2) * width for i, hue in enumerate(hues)}
    return [
        line.model_copy(update={"x": [x + shift[line.hue] for x in line.x], "joined": False})
        for line in lines
        if line.hue is not None
    ]
