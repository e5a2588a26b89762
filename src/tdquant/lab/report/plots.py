"""Plots as SVG: lines with bands, points with whiskers; a readout; the same numbers as a table.

Colours are classes of the style sheet, so a plot follows the theme. A hidden slider under each
plot is what keyboards and screen readers read it with; the script moves it for a pointer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdquant.lab.report.axes import Axis, fit_axis
from tdquant.lab.report.marks import colour, shape, sparse
from tdquant.lab.report.markup import Markup, data, join, tag
from tdquant.lab.report.numerals import interval, is_number, numeral

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 466, 34, 256

Number = float | None


@dataclass(frozen=True)
class Line:
    """One series of a plot.

    Attributes:
        name: What the legend says.
        x: Where.
        y: Values; None leaves a gap.
        low: Lower end of an interval around each value, or empty.
        high: Upper end.
        labels: A word at each point, or empty.
        dashed: For what others are compared with; marks are hollow.
        joined: Whether a stroke goes through the values.
        hue: Number of its colour and mark; its place among the lines if None. -1 is grey with a
            mark of its own, for what others are compared with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    labels: Sequence[str] = ()
    dashed: bool = False
    joined: bool = True
    hue: int | None = None

    def interval(self, index: int) -> tuple[float, float] | None:
        """The interval around value ``index``, if there is one."""
        if index >= min(len(self.low), len(self.high)):
            return None
        low, high = self.low[index], self.high[index]
        return (float(low), float(high)) if is_number(low) and is_number(high) else None  # type: ignore[arg-type]

    def points(self) -> list[int]:
        """Indices of the values that are there."""
        return [i for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))
                if is_number(x) and is_number(y)]  # fmt: skip


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
    note: str = "",
    heading: int = 4,
    name: str = "",
) -> Markup:
    """A figure: title, legend, drawing, readout, and the numbers in a table that unfolds.

    Arguments:
        title: What is plotted.
        x_label: Name and unit of the horizontal axis.
        y_label: Of the vertical one.
        lines: The series, told apart by colour, mark and name.
        x_words: What the numbers 0, 1, ... of the horizontal axis stand for, if it has words
            instead of numbers. Values are marked, those of each hue a little aside of the others.
        x_log: Logarithmic, where all numbers are positive.
        y_log: The same upwards.
        points: Mark every value; without it, where there are several lines, some of each.
        note: A line underneath.
        heading: Level of the title.
        name: A class by which the script knows this plot.
    """
    lines = [s if s.hue is not None else replace(s, hue=k) for k, s in enumerate(lines)]
    points = points or bool(x_words)
    reach = [v for s in lines for v in (*s.y, *s.low, *s.high)]
    if x_words:
        x_axis = Axis(-0.5, len(x_words) - 0.5, LEFT, RIGHT)
    else:
        margin = 0.06 if points else 0.0
        x_axis = fit_axis([v for s in lines for v in s.x], LEFT, RIGHT, x_log, margin)
    y_axis = fit_axis(reach, BOTTOM, TOP, y_log)
    rows = readings(lines, x_axis, x_label, x_words)
    drawn = _aside(lines) if x_words else lines
    about = f"{title}. {y_label} against {x_label}, for {', '.join(s.name for s in lines)}."
    drawing = tag(
        "svg",
        _frame(x_axis, y_axis, x_label, y_label, x_words),
        tag("g", *(_line(s, x_axis, y_axis, points, _marked(s, k, len(drawn), points))
                   for k, s in enumerate(drawn)), class_="lines"),
        _labels(drawn, x_axis, y_axis),
        tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=about,
    )  # fmt: skip
    axes = {"x": [x_axis.low, x_axis.high, x_axis.log], "y": [y_axis.low, y_axis.high, y_axis.log]}
    return tag(
        "figure",
        tag(f"h{heading}", title),
        legend(drawn, points or len(drawn) > 1),
        tag("div", drawing, _reader(title, len(rows)), class_="drawing"),
        # Screen readers hear the same from the slider: here it would be said twice.
        tag("div", "", class_="readout", aria_hidden="true"),
        tag("figcaption", note) if note else None,
        _numbers(title, x_label, lines, x_words),
        data({"rows": rows, "axes": axes, "box": [LEFT, RIGHT, TOP, BOTTOM]}),
        class_=f"plot {name}".strip(),
    )


def legend(lines: Sequence[Line], points: bool = False) -> Markup:
    """The names of the series beside what they are drawn with."""
    entries = []
    for line in lines:
        stroke = tag("path", d="M1 7H25", class_=_classes("stroke", line))
        mark = _mark(13, 7, line) if points or len(line.points()) == 1 else None
        swatch = tag("svg", stroke if line.joined else None, mark, viewBox="0 0 26 14",
                     aria_hidden="true")  # fmt: skip
        entries.append(tag("li", swatch, line.name))
    return tag("ul", *entries, class_="legend")


def readings(
    lines: Sequence[Line], axis: Axis, label: str, words: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What the readout says at every x: its position, and the values of the series there."""
    found: dict[float, list[list[Any]]] = {}
    for k, line in enumerate(lines):
        for i in line.points():
            ends = line.interval(i)
            told = f"{line.name}: " if len(lines) > 1 or line.labels else ""
            told += f"{line.labels[i]}, " if i < len(line.labels) else ""
            told += numeral(line.y[i])
            if ends:
                told += f" ({interval(*ends)})"
            hue = k if line.hue is None else line.hue
            found.setdefault(float(line.x[i]), []).append([hue, told])
    return [
        {"at": round(axis.at(x), 1), "head": f"{label} {_word(x, words)}", "items": found[x]}
        for x in sorted(found)
    ]


def _word(x: float, words: Sequence[str]) -> str:
    return words[int(x)] if words else numeral(x)


def _aside(lines: Sequence[Line]) -> list[Line]:
    """Marks above words: each hue has a column of its own there, those of one hue share it."""
    hues = sorted({line.hue for line in lines if line.hue is not None})
    width = 0.8 / max(len(hues), 1)
    shift = {hue: (i - (len(hues) - 1) / 2) * width for i, hue in enumerate(hues)}
    return [
        replace(line, x=[x + shift[line.hue] for x in line.x], joined=False)  # type: ignore[index]
        for line in lines
    ]


def _reader(title: str, count: int) -> Markup:
    return tag(
        "input", type="range", class_="reader", min=0, max=max(count - 1, 0), value=0,
        aria_label=f"Read values of: {title}. Arrow keys move", aria_valuetext="", hidden=True,
    )  # fmt: skip


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, words: Sequence[str]) -> Markup:
    parts = [tag("text", y_label, x=4, y=16, class_="axis")]
    for value in y_axis.ticks():
        y = round(y_axis.at(value), 1)
        parts.append(tag("path", d=f"M{LEFT} {y}H{RIGHT}", class_="rule"))
        parts.append(tag("text", numeral(value), x=LEFT - 7, y=y + 4, class_="tick end"))
    for edge in range(1, len(words)):
        x = round(x_axis.at(edge - 0.5), 1)
        parts.append(tag("path", d=f"M{x} {TOP}V{BOTTOM}", class_="rule"))
    for value in range(len(words)) if words else x_axis.ticks():
        x = round(x_axis.at(value), 1)
        if not words:
            parts.append(tag("path", d=f"M{x} {BOTTOM}v5", class_="base"))
        parts.append(tag("text", _word(value, words), x=x, y=BOTTOM + 19, class_="tick middle"))
    parts.append(tag("path", d=f"M{LEFT} {BOTTOM}H{RIGHT}", class_="base"))
    parts.append(tag("text", x_label, x=RIGHT, y=HEIGHT - 4, class_="axis end"))
    return join(parts)


def _marked(line: Line, place: int, count: int, points: bool) -> list[int]:
    """Which values of a line have a mark."""
    there = line.points()
    if points or len(there) == 1 or not line.joined:
        return there
    return sparse(there, place, count) if count > 1 else []


def _line(line: Line, x_axis: Axis, y_axis: Axis, points: bool, marked: Sequence[int]) -> Markup:
    there = line.points()
    place = {i: (round(x_axis.at(line.x[i]), 1), round(y_axis.at(line.y[i]), 1)) for i in there}  # type: ignore[arg-type]
    spans: dict[int, tuple[float, float]] = {}
    for i in there:
        ends = line.interval(i)
        if ends and (ends[0] > 0 or not y_axis.log):
            spans[i] = (round(y_axis.at(ends[0]), 1), round(y_axis.at(ends[1]), 1))
    parts = []
    if spans and points:
        whiskers = "".join(f"M{place[i][0]} {low}V{high}" for i, (low, high) in spans.items())
        parts.append(tag("path", d=whiskers, class_=_classes("whisker", line)))
    elif spans:
        up = [f"{place[i][0]} {spans[i][1]}" for i in spans]
        down = [f"{place[i][0]} {spans[i][0]}" for i in reversed(list(spans))]
        band = f"M{'L'.join(up + down)}Z"
        parts.append(tag("path", d=band, class_=_classes("band", line)))
    path, previous = "", None
    for i in there if line.joined else ():
        path += f"{'L' if previous == i - 1 else 'M'}{place[i][0]} {place[i][1]}"
        previous = i
    parts.append(tag("path", d=path, class_=_classes("stroke", line)))
    parts += [_mark(*place[i], line) for i in marked]
    return tag("g", *parts)


def _labels(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Markup:
    """The words at points: each at the first of four corners where it covers nothing, or nowhere.

    What is left out is still said by the readout.
    """
    words = [
        (x_axis.at(line.x[i]), y_axis.at(line.y[i]), line.labels[i])  # type: ignore[arg-type]
        for line in lines
        for i in line.points()
        if i < len(line.labels) and line.labels[i]
    ]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in words]
    parts = []
    for x, y, word in words:
        wide = 9 * len(word)
        for right, up in ((True, True), (False, True), (True, False), (False, False)):
            left, top = (x + 6 if right else x - 6 - wide), (y - 17 if up else y + 5)
            box = (left, top, left + wide, top + 12)
            inside = box[0] > LEFT and box[2] < WIDTH and box[1] > TOP - 12 and box[3] < BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = {"x": round(x + 6 if right else x - 6, 1), "y": round(top + 10, 1)}
                parts.append(tag("text", word, class_="label" if right else "label end", **place))
                break
    return tag("g", *parts)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _mark(x: float, y: float, line: Line) -> Markup:
    return tag("path", d=f"M{x} {y}{shape(line.hue or 0)}", class_=_classes("mark", line))


def _classes(kind: str, line: Line) -> str:
    return f"{kind} {colour(line.hue or 0)}{' dashed' if line.dashed else ''}"


def _numbers(title: str, x_label: str, lines: Sequence[Line], words: Sequence[str]) -> Markup:
    """The table that says the same."""
    at = [{float(line.x[i]): numeral(line.y[i]) for i in line.points()} for line in lines]
    head = tag(
        "tr", *(tag("th", name, scope="col") for name in (x_label, *[s.name for s in lines]))
    )
    rows = [
        tag("tr", tag("th", _word(x, words), scope="row"), *(tag("td", v.get(x, "")) for v in at))
        for x in sorted({x for values in at for x in values})
    ]
    table = tag("table", tag("caption", title, class_="unseen"), tag("thead", head),
                tag("tbody", *rows))  # fmt: skip
    region = tag("div", table, class_="scroller", tabindex=0, role="region",
                 aria_label=f"Numbers: {title}")  # fmt: skip
    return tag("details", tag("summary", "Numbers"), region)
