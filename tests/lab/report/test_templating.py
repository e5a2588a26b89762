"""Templates escape all text, and numbers are written as readers want them."""

import json
import re
import sys

import pytest

from tdquant.errors import MissingDependencyError
from tdquant.lab.report.formats import VERDICTS
from tdquant.lab.report.lines import Line
from tdquant.lab.report.numerals import duration, interval, numeral, resolution
from tdquant.lab.report.plots import plot
from tdquant.lab.report.tables import Column, table
from tdquant.lab.report.templating import _environment, render

HOSTILE = '</script>"><img src=x onerror=alert(1)><!-- \u2028 & '


def test_text_is_escaped_and_html_of_templates_is_not():
    inner = table(HOSTILE, [Column(key="a", label=HOSTILE)], [{"a": HOSTILE, "command": HOSTILE}])
    made = render("runs", machines=HOSTILE, samples=[], chapters=[], tried=[],
                  groups=[{"comparison": inner, "plots": []}])  # fmt: skip
    assert inner in made
    assert HOSTILE not in made
    assert "<img" not in made
    assert made.count("&lt;img src=x") == inner.count("&lt;img src=x") + 1


def test_no_text_ends_a_block_of_data():
    made = plot("Title", HOSTILE, "y", [Line(name=HOSTILE, x=[1], y=[2.0], labels=[HOSTILE])])
    block = re.search('<script type="application/json">(.*?)</script>', made, re.S)[1]
    assert "<" not in block
    assert json.loads(block)[0]["head"] == f"{HOSTILE} 1"


def test_every_verdict_has_a_sign_of_its_own():
    badge = _environment().get_template("macros.html").module.badge
    signs = [re.findall(r' d="[^"]*"', badge(verdict)) for verdict in VERDICTS]
    assert len({str(sign) for sign in signs}) == len(VERDICTS)
    assert all(signs)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure"])
def test_a_missing_package_is_named_with_what_installs_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    _environment.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        plot("Title", "t", "y", [Line(name="a", x=[1], y=[2.0])])
    assert 'pip install "tdquant[report]"' in str(caught.value)


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
