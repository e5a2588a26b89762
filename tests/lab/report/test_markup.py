"""HTML is escaped where text enters it, and numbers are written as readers want them."""

import json
import re

import pytest

from tdquant.lab.report.markup import Markup, data, join, tag
from tdquant.lab.report.numerals import duration, interval, numeral, resolution


def test_text_is_escaped_and_markup_is_not():
    assert tag("b", "<i>&", tag("i", "x")) == "<b>&lt;i&gt;&amp;<i>x</i></b>"
    assert join(["<", None, Markup("<")]) == "&lt;<"


def test_attributes_are_escaped_and_named():
    made = tag("input", class_='a"><script>', aria_label="x", hidden=True, title=None, open=False)
    assert made == '<input class="a&quot;&gt;&lt;script&gt;" aria-label="x" hidden>'


def test_no_text_ends_a_block_of_data():
    hostile = {"path": "</script><script>alert(1)</script><!-- \u2028 & "}
    made = data(hostile)
    assert made.count("<") == 2  # those of the block itself
    assert json.loads(re.sub("<[^>]*>", "", made)) == hostile
    with pytest.raises(ValueError, match="JSON"):
        data(float("nan"))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, None, "–"),
        (float("nan"), 2, "–"),
        (12.345, 1, "12.3"),
        (-0.5, 2, "−0.50"),
        (5000, None, "5\u202f000"),
        (123456.7, None, "123\u202f457"),
        (0.00012, None, "1.2e−4"),
        (0.0, None, "0"),
        (-0.004, 2, "0.00"),
        (-1234.5, 1, "−1\u202f234.5"),
        ("W4A4", None, "W4A4"),
        (True, None, "True"),
    ],
)
def test_numerals(value, digits, text):
    assert numeral(value, digits) == text


def test_an_interval_says_how_many_places_mean_something():
    assert resolution(11.06, 11.74) == 2
    assert resolution(100, 140) == 0
    assert resolution(3, 3) is None
    assert interval(11.06, 11.74, 2) == "11.06–11.74"
    assert interval(-1, 2, 0) == "−1 to 2"


def test_durations():
    assert [duration(s) for s in (40, 720, 12_240)] == ["40 s", "12 min", "3.4 h"]
