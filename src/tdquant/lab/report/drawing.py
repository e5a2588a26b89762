"""Draws plots with matplotlib, as SVG that a page styles.

Only geometry is kept: matplotlib's colours, fonts and ids are replaced by classes of the style
sheet, so that a plot follows the page's theme. An artist's ``gid`` holds its classes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from tdquant.lab.report.numerals import numeral
from tdquant.lab.report.templating import EXTRA
from tdquant.support.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tdquant.lab.report.lines import Line

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 466, 34, 256
"""The box of the axes inside the drawing, from its upper left corner."""

COLOURS = 8
"""Number of colours in the style sheet, and of marks on the page; the neutral one is extra."""

BAR = 0.5
"""Width of a bar, in places of words."""

MOST_TICKS = 5
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_LABEL_SIZE = 15
"""Font size of labels on narrow screens, where they are largest."""


def colour(hue: int) -> str:
    """The style sheet's class for the colour of a hue; grey below 0."""
    return f"c{hue % COLOURS}" if hue >= 0 else "neutral"


def symbol(hue: int) -> str:
    """The id of a hue's mark on the page. Hues that share a colour have different marks."""
    return f"mark-{(hue + hue // COLOURS) % COLOURS}" if hue >= 0 else "mark-neutral"


def draw(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    words: Sequence[str] = (),
    x_log: bool = False,
    y_log: bool = False,
    points: bool = False,
    bars: bool = False,
) -> tuple[str, Callable[[float], float]]:
    """Draws lines on axes.

    Arguments:
        lines: The series, with hues.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        words: Names of the positions 0, 1, ... of a horizontal axis without numbers.
        x_log: Logarithmic horizontal axis, if all numbers are positive.
        y_log: Logarithmic vertical axis, if all numbers are positive.
        points: Mark every value, and draw intervals as whiskers instead of bands.
        bars: Draw a bar from zero to every value.

    Returns:
        The content of an ``svg`` element of ``WIDTH x HEIGHT``, and a function that gives the
        horizontal position of a number in it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with _figure() as (figure, axes):
        least_x = _least(line.values[0] for line in lines)
        least_y = _least(line.values[1:].ravel() for line in lines)
        axes.set_xscale("log" if x_log and least_x > 0 else "linear")
        axes.set_yscale("log" if y_log and least_y > 0 else "linear")
        axes.margins(x=0.06 if points else 0.0, y=0.05)
        for place, line in enumerate(lines):
            if bars:
                _draw_bars(axes, line)
                continue
            _draw_line(axes, line, points, _marked(line, place, len(lines), points))
        if words:
            axes.set_xlim(-0.5, len(words) - 0.5)
        elif least_x >= 0:
            axes.set_xlim(left=max(axes.get_xlim()[0], 0))
        if least_y >= 0:
            axes.set_ylim(bottom=0 if bars else max(axes.get_ylim()[0], 0))
        _draw_frame(axes, words)
        figure.text(4 / WIDTH, 1 - 16 / HEIGHT, _plain(y_label), gid="axis", parse_math=False)
        figure.text(RIGHT / WIDTH, 4 / HEIGHT, _plain(x_label), gid="axis end", ha="right",
                    parse_math=False)  # fmt: skip
        _draw_labels(axes, lines)
        at, floor = axes.transData, axes.get_ylim()[0]
        return _themed(figure), lambda x: round(float(at.transform((x, floor))[0]), 1)


def _least(values: Iterable[np.ndarray]) -> float:
    """The smallest number that is not a gap; 1 if there is none."""
    found = np.concatenate([[np.nan], *values])
    return float(found[np.isfinite(found)].min()) if np.isfinite(found).any() else 1.0


def _marked(line: Line, place: int, count: int, points: bool) -> list[int]:
    """Indices of the values with a mark: all, or about eight that avoid those of other lines."""
    there = line.points() if line.shown else []
    if points or len(there) == 1 or not line.joined:
        return there
    stride, columns = max(1, -(-len(there) // 8)), min(count, COLOURS)
    return there[place % columns * stride // columns :: stride] if count > 1 else []


@contextmanager
def _figure() -> Iterator[tuple[Figure, Axes]]:
    """An empty drawing in matplotlib's default style, which the user's settings do not affect."""
    style = require("matplotlib.style", EXTRA)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "tdquant", "font.size": 11.5}
    with style.context(["default", settings]), warnings.catch_warnings():
        # The browser's fonts are used, not matplotlib's, which lack some letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = require("matplotlib.figure", EXTRA).Figure((WIDTH / 72, HEIGHT / 72), dpi=72)
        figure.patch.set_visible(False)
        width, height = (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT
        axes = figure.add_axes((LEFT / WIDTH, 1 - BOTTOM / HEIGHT, width, height))
        axes.patch.set_visible(False)
        yield figure, axes


def _draw_line(axes: Axes, line: Line, points: bool, marked: list[int]) -> None:
    hue = line.hue or 0
    classes = f"{colour(hue)}{' dashed' if line.dashed else ''}{'' if line.shown else ' off'}"
    x, y, low, high = line.values
    there = np.isfinite(line.values).all(axis=0)
    if points and there.any():
        gap = np.full(there.sum(), np.nan)
        ends = [
            np.ravel(v, "F") for v in ((x[there], x[there], gap), (low[there], high[there], gap))
        ]
        axes.plot(*ends, gid=f"whisker {classes}")
    elif there.any():
        around = np.append(high[there], low[there][::-1])
        axes.fill(np.append(x[there], x[there][::-1]), around, gid=f"band {classes}")
    axes.plot(
        x, y, linestyle="-" if line.joined else "none", marker="o", markevery=marked,
        gid=f"line {classes} #{symbol(hue)}",
    )  # fmt: skip


def _draw_bars(axes: Axes, line: Line) -> None:
    x, y = line.values[:2, line.points()]
    for bar in axes.bar(x, y, BAR):
        bar.set_gid(f"bar {colour(line.hue or 0)}")


def _draw_frame(axes: Axes, words: Sequence[str]) -> None:
    """Ticks with their texts, rules, and the base line."""
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_gid("base")
    axes.minorticks_off()
    axes.tick_params(bottom=False, left=False, pad=7)
    text = {"parse_math": False}
    across = list(range(len(words))) if words else _ticks(*axes.get_xlim(), axes.get_xscale())
    names = [_plain(word) for word in words] or [numeral(v) for v in across]
    axes.set_xticks(across, names, gid="tick middle", **text)
    up = _ticks(*axes.get_ylim(), axes.get_yscale())
    axes.set_yticks(up, [numeral(v) for v in up], gid="tick end", **text)
    for value in up:
        axes.axhline(value, gid="rule", zorder=0)
    for value in range(1, len(words)):
        axes.axvline(value - 0.5, gid="rule", zorder=0)
    for value in () if words else across:
        axes.axvline(value, -5 / (BOTTOM - TOP), 0, gid="base", clip_on=False)


def _ticks(low: float, high: float, scale: str) -> list[float]:
    """A few round numbers within an axis."""
    ticker = require("matplotlib.ticker", EXTRA)
    linear = ticker.MaxNLocator(MOST_TICKS, steps=[1, 2, 2.5, 5, 10])
    logarithmic = [ticker.LogLocator(subs=subs, numticks=MOST_TICKS)
                   for subs in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))]  # fmt: skip
    for locator in [*(logarithmic if scale == "log" else ()), linear]:
        found = [float(v) for v in locator.tick_values(low, high) if low <= v <= high]
        if 2 <= len(found) <= MOST_TICKS:
            break
    return found


def _draw_labels(axes: Axes, lines: Sequence[Line]) -> None:
    """Writes words at points, each at the first of four corners where it covers nothing.

    Words that fit nowhere are left to the readout.
    """
    words = [
        (*line.values[:2, i], _plain(line.labels[i]))
        for line in lines
        for i in line.points()
        if any(line.labels[i : i + 1])
    ]
    if not words:
        return
    bbox = require("matplotlib.transforms", EXTRA).Bbox
    at = axes.transData.transform([word[:2] for word in words])
    taken = [bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    inside = bbox.from_extents(LEFT, HEIGHT - BOTTOM, WIDTH, HEIGHT - TOP + 12)
    for x, y, word in words:
        for right, up in ((True, True), (False, True), (True, False), (False, False)):
            note = axes.annotate(
                word, (x, y), (6 if right else -6, 6 if up else -6), textcoords="offset points",
                ha="left" if right else "right", va="bottom" if up else "top",
                fontsize=_LABEL_SIZE, parse_math=False, gid="label" if right else "label end",
            )  # fmt: skip
            box = note.get_window_extent()
            if (
                (inside.min <= box.min).all()
                and (box.max <= inside.max).all()
                and (not box.count_overlaps(taken))
            ):
                taken.append(box)
                break
            note.remove()


def _plain(text: str) -> str:
    """The text with blanks for line breaks and for characters that XML does not allow."""
    return "".join(each if each.isprintable() else " " for each in text)


def _themed(figure: Figure) -> str:
    """The drawing as SVG with classes: no styles, no ids, marks by reference to the page's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    whole = next(ElementTree.fromstring(buffer.getvalue()).iter(f"{_SVG}g"))
    for group in whole.iter(f"{_SVG}g"):
        name = group.attrib.pop("id", "")
        for definitions in group.findall(f"{_SVG}defs"):
            group.remove(definitions)
        if not name or re.search(r"_\d+$", name):  # matplotlib's own number
            continue
        classes, _, mark = name.partition(" #")
        group.set("class", classes)
        for use in group.iter(f"{_SVG}use"):
            use.set("href", f"#{mark}")
    for element in whole.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key in ("style", "clip-path", "transform", _HREF):
            element.attrib.pop(key, None)
        for key in {"d", "x", "y"}.intersection(element.attrib):
            element.set(key, _rounded(element.attrib[key]))
        element.tail = None
        if element.tag == "g":
            element.text = None
    return ElementTree.tostring(whole, "unicode")


def _rounded(numbers: str) -> str:
    """Coordinates with one decimal."""
    tenths = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", numbers)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", tenths.replace(".0", "")).strip()
