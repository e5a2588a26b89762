"""Axes hold their values, and their ticks are round and within."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdquant.lab.report.axes import Axis, fit_axis
from tdquant.lab.report.plots import Line, plot, readings

FINITE = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
def test_every_value_lies_on_its_axis_and_ticks_do(values, log):
    axis = fit_axis(values, 50, 450, log)
    for value in values:
        assert 50 - 1e-6 <= axis.at(value) <= 450 + 1e-6
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    for tick in ticks:
        assert 50 - 1e-3 <= axis.at(tick) <= 450 + 1e-3


def test_a_logarithmic_axis_needs_positive_values():
    assert fit_axis([1, 100], 0, 1, log=True).log
    assert not fit_axis([0, 100], 0, 1, log=True).log
    assert Axis(1, 100, 0, 1, log=True).at(10) == pytest.approx(0.5)
    assert Axis(1, 1000, 0, 1, log=True).ticks() == [1, 10, 100, 1000]


def test_gaps_and_what_is_not_finite_are_left_out():
    line = Line("a", [1, 2, 3, 4], [1.0, None, math.nan, 2.0], [0.5] * 4, [2.5] * 4)
    assert line.points() == [0, 3]
    rows = readings([line], fit_axis([1, 4], 0, 100), "t")
    assert [row["head"] for row in rows] == ["t 1", "t 4"]
    assert rows[0]["items"] == [[0, "1 (0.5–2.5)"]]
    drawn = plot("Title", "t", "y", [line])
    assert "nan" not in drawn.lower().replace("finance", "")
    assert 'd="M' in drawn


def test_the_table_of_a_plot_says_what_its_lines_say():
    lines = [Line("a", [1, 2], [3.0, 4.0]), Line("b", [2], [5.0])]
    made = plot("Title", "t", "y", lines)
    assert '<th scope="row">2</th><td>4</td><td>5</td>' in made
    assert '<th scope="row">1</th><td>3</td><td></td>' in made


def test_words_on_an_axis():
    lines = [
        Line("a, static", [0, 1], [3.0, 4.0], dashed=True, hue=0),
        Line("a", [0, 1], [1.0, 2.0], hue=0),
        Line("b", [1], [5.0], hue=1),
    ]
    made = plot("Title", "bits", "y", lines, x_words=["W4A4", "W8A8"])
    assert '<th scope="row">W8A8</th><td>4</td><td>2</td><td>5</td>' in made
    assert '"head":"bits W8A8"' in made
    assert made.count("mark c0 dashed") == 3  # two values and the legend
    marks = re.findall(r"M([\d.]+) [\d.]+m-4 0a4", made)  # circles of the first hue
    assert len(set(marks) - {"13"}) == 2  # the hue has one column a word
    assert 'class="stroke c0" d=""' in made or 'd="" class="stroke c0"' in made  # not joined


def test_lines_are_told_apart_without_their_colour():
    many = list(range(100))
    lines = [Line(f"line {k}", many, [float(k)] * 100) for k in range(10)]
    made = plot("Title", "t", "y", [*lines, Line("float", many, [11.0] * 100, hue=-1)])
    marks = re.findall(r'd="M([\d.]+) ([\d.]+)(m[^"]*)" class="mark ([^"]*)"', made)
    looks = {(shape, colour) for _, _, shape, colour in marks}
    assert len(looks) == 11  # past eight lines a colour comes again, with another mark
    assert len({shape for shape, _ in looks}) == 9
    assert len({x for x, *_ in marks}) > 11  # not all above each other
    assert all(5 < sum(y == height for _, y, *_ in marks) < 14 for height in {m[1] for m in marks})
    assert "mark" not in plot("Title", "t", "y", lines[:1])  # nothing to tell it from
    points = plot("Title", "t", "y", lines[:2], points=True)
    assert points.count('class="mark') == 202


def test_what_others_are_compared_with_has_no_colour():
    lines = [Line("a", [1, 2], [3.0, 4.0], hue=0), Line("float", [1, 2], [1.0, 1.0], hue=-1)]
    made = plot("Title", "t", "y", lines, points=True)
    assert made.count("stroke neutral") == 2  # and the legend
    assert made.count("mark neutral") == 3
    assert "c-1" not in made
    assert '[-1,"float: 1"]' in made  # the readout of the script
    words = plot("Title", "bits", "y", [Line("float", [0], [1.0], hue=-1)], x_words=["W4A4"])
    assert "mark neutral" in words


def test_a_plot_of_nothing_is_a_plot():
    assert "<svg" in plot("Title", "t", "y", [Line("a", [], [])], y_log=True)


def test_words_at_points_never_cover_each_other():
    crowd = Line("a", [1.0] * 12 + [9], [1.0] * 12 + [9], labels=["W4A4"] * 13, joined=False)
    made = plot("Title", "x", "y", [crowd], points=True)
    assert 1 <= made.count(">W4A4</text>") <= 5
