"""Plots: values lie where their axis says, ticks are round, and words say the same as lines."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdquant.lab.report.drawing import BOTTOM, LEFT, RIGHT, TOP, _ticks, draw
from tdquant.lab.report.lines import Line
from tdquant.lab.report.plots import plot, readings

FINITE = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


def line_of(name, x, y, low=None, high=None, **kind):
    return Line(name=name, x=x, y=y, low=low, high=high, **kind)


def marks_of(svg):
    """Places and symbols of marks in a drawing."""
    return re.findall(r'<use x="([\d.-]+)" y="([\d.-]+)" href="#([^"]*)"', svg)


@settings(max_examples=25, deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
def test_every_value_lies_on_its_axes_and_ticks_do(values, log):
    line = line_of("a", values, values)
    svg, at = draw([line], "x", "y", (), log, log, points=True)
    marks = marks_of(svg)
    assert len(marks) == len(values)
    for value, (x, y, _) in zip(values, marks, strict=True):
        assert LEFT - 0.1 <= float(x) <= RIGHT + 0.1
        assert TOP - 0.1 <= float(y) <= BOTTOM + 0.1
        assert at(value) == pytest.approx(float(x), abs=0.11)
    rules = re.findall(r'class="rule"><path d="M[\d.]+ ([\d.-]+)', svg)
    assert 2 <= len(rules) <= 6
    assert all(TOP - 0.1 <= float(y) <= BOTTOM + 0.1 for y in rules)


def test_ticks_are_round():
    assert _ticks(1, 1000, "log") == [1, 10, 100, 1000]
    assert _ticks(0, 980, "linear") == [0, 200, 400, 600, 800]
    assert _ticks(9, 120, "log") == [10, 20, 30, 50, 100]


def test_a_logarithmic_axis_needs_positive_values():
    line = line_of("a", [1, 10, 100], [1.0, 10.0, 100.0])
    at = draw([line], "x", "y", x_log=True)[1]
    assert at(10) == pytest.approx((at(1) + at(100)) / 2, abs=0.11)
    at = draw([line_of("a", [0, 10, 100], [1.0] * 3)], "x", "y", x_log=True)[1]
    assert at(50) == pytest.approx((at(0) + at(100)) / 2, abs=0.11)


def test_a_drawing_is_reproduced_and_leaves_no_settings_behind():
    matplotlib = pytest.importorskip("matplotlib")
    before = {key: matplotlib.rcParams[key] for key in matplotlib.rcParams}
    lines = [line_of("a", [1, 2, 3], [1.0, 3.0, 2.0], [0.5] * 3, [3.5] * 3, dashed=True)]
    svg = draw(lines, "x $x", "<y>")[0]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.grid": True}):
        assert draw(lines, "x $x", "<y>")[0] == svg
    assert {key: matplotlib.rcParams[key] for key in matplotlib.rcParams} == before
    # Styles come from the page, which allows none inline.
    assert not re.search("style=|id=|url|fill|stroke|font", svg)
    assert "&lt;y&gt;" in svg
    assert "x $x" in svg


def test_gaps_and_what_is_not_finite_are_left_out():
    line = line_of("a", [1, 2, 3, 4], [1.0, None, math.nan, 2.0], [0.5] * 4, [2.5] * 4)
    assert line.points() == [0, 3]
    assert np.isnan(line.values[1, 1:3]).all()
    rows = readings([line], lambda x: 10 * x, "t")
    assert [row["head"] for row in rows] == ["t 1", "t 4"]
    assert rows[0]["items"] == [[0, "1 (0.5–2.5)"]]
    drawn = plot("Title", "t", "y", [line])
    assert "nan" not in drawn.lower()
    assert 'd="M' in drawn


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 1e308], [0.0, 0.0], [3.0, 3.0]])
@pytest.mark.parametrize("log", [False, True])
def test_values_that_no_axis_holds_are_left_out(values, log):
    made = plot("Title", "x", "y", [line_of("a", [1, 2], values)], y_log=log, points=True)
    shown = [value for value in values if abs(value) < 1e100]
    assert len(marks_of(made.partition("role=")[2])) == len(shown)


def test_letters_that_xml_forbids_are_blanks():
    made = plot("Title", "x\x00", "y\ud800", [line_of("a", [0], [1.0])], x_words=["a\nb\x1b"])
    assert ">a b </text>" in made


def test_the_table_of_a_plot_says_what_its_lines_say():
    lines = [line_of("a", [1, 2], [3.0, 4.0]), line_of("b", [2], [5.0])]
    made = plot("Title", "t", "y", lines)
    assert '<th scope="row">2</th><td>4</td><td>5</td>' in made
    assert '<th scope="row">1</th><td>3</td><td></td>' in made


def test_words_on_an_axis():
    lines = [
        line_of("a, static", [0, 1], [3.0, 4.0], dashed=True, hue=0),
        line_of("a", [0, 1], [1.0, 2.0], hue=0),
        line_of("b", [1], [5.0], hue=1),
    ]
    made = plot("Title", "bits", "y", lines, x_words=["W4A4", "W8A8"])
    assert '<th scope="row">W8A8</th><td>4</td><td>2</td><td>5</td>' in made
    assert '"head":"bits W8A8"' in made
    assert made.count('"line c0 dashed"') == 2  # the line and its entry in the legend
    marks = marks_of(made)
    assert [mark for *_, mark in marks] == ["mark-0"] * 4 + ["mark-1"]
    assert len({x for x, _, mark in marks if mark == "mark-0"}) == 2  # one column a word
    assert 'class="line c0"><path' not in made  # not joined


def test_lines_are_told_apart_without_their_colour():
    many = list(range(100))
    lines = [line_of(f"line {k}", many, [float(k)] * 100) for k in range(10)]
    made = plot("Title", "t", "y", [*lines, line_of("float", many, [11.0] * 100, hue=-1)])
    svg = made[made.index('<svg viewBox="0 0 480') :]
    drawn = re.findall(r'class="line ([^"]*)">(.*?</g>)</g>', svg)
    looks = {(classes, mark) for classes, uses in drawn for *_, mark in marks_of(uses)}
    assert len(looks) == 11  # past eight lines a colour comes again, with another mark
    assert len({mark for _, mark in looks}) == 9
    assert len({x for x, *_ in marks_of(svg)}) > 11  # not all above each other
    assert all(5 < len(marks_of(uses)) < 14 for _, uses in drawn)
    assert "<use" not in plot("Title", "t", "y", lines[:1])  # nothing to tell it from
    points = plot("Title", "t", "y", lines[:2], points=True)
    assert len(marks_of(points)) == 200


def test_what_others_are_compared_with_has_no_colour():
    lines = [line_of("a", [1, 2], [3.0, 4.0], hue=0), line_of("float", [1, 2], [1.0, 1.0], hue=-1)]
    made = plot("Title", "t", "y", lines, points=True)
    assert made.count('"line neutral"') == 2  # and the legend
    assert made.count('href="#mark-neutral"') == 3
    assert "c-1" not in made
    assert '[-1,"float: 1"]' in made  # the readout of the script
    words = plot("Title", "bits", "y", [line_of("float", [0], [1.0], hue=-1)], x_words=["W4A4"])
    assert "#mark-neutral" in words


def test_a_plot_of_nothing_is_a_plot():
    assert "<svg" in plot("Title", "t", "y", [line_of("a", [], [])], y_log=True)


def test_words_at_points_never_cover_each_other():
    crowd = line_of("a", [1.0] * 12 + [9], [1.0] * 12 + [9], labels=["W4A4"] * 13, joined=False)
    made = plot("Title", "x", "y", [crowd], points=True)
    assert 1 <= made.count(">W4A4</text>") <= 5
