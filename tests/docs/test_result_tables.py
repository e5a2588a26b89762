"""Tables and numbers in the documentation are those that the committed results give."""

import re

import pytest
from scripts.results.allowed import ALLOWED
from scripts.results.pages import NUMBER, PAGES, TABLE, filled
from scripts.results.paths import evaluate
from scripts.results.typed import MEASURED, on, shown, typed

MADE = [
    page for page in PAGES if TABLE.search(page.read_text()) or NUMBER.search(page.read_text())
]
ROWS = {"rows": [{"a": "x", "b": 3.0}, {"a": "y", "b": 4.0}], "deep": {"8": {"c": 6}}}


@pytest.mark.parametrize("page", MADE, ids=lambda page: page.stem)
def test_tables_and_numbers_are_of_the_committed_results(page):
    text = page.read_text()
    assert filled(text) == text, "run scripts/result_tables.py"
    for pattern, typo in ((TABLE, r"\1\n| 9 |\n\4"), (NUMBER, r"\g<1>9.9\6")):
        assert filled(pattern.sub(typo, text)) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_measured_number_is_typed(page):
    found = list(typed(page.stem, page.read_text()))
    assert not found, "mark these numbers, or say in scripts/results/allowed.py what they are"


@pytest.mark.parametrize(
    "sentence",
    [
        "It takes 12 ms.", "7 % fewer", "an error of 0.25", "58 of 60 pairs", "3.2x", "2x faster",
        "faster by a factor of two", "three times smaller", "at half the error",
        "| a | 126 |", "a few hundredths", "1,300 MB", "16 times", "a distance of 126",
    ],
)  # fmt: skip
def test_a_typed_number_is_found(sentence):
    assert list(typed("", f"Words before. {sentence} Words after."))


@pytest.mark.parametrize(
    "sentence",
    [
        "W4A8 of 16 samples", "`0.25`", "\n```\n0.25 ms\n```\n", "[words](https://x.org/0.25)",
        "<!-- n: search x .2f -->0.25<!-- /n -->", "\n\n    x = 0.25 y\n\n",
    ],
)  # fmt: skip
def test_what_is_not_typed_or_not_measured_is_not_found(sentence):
    assert not list(typed("", f"Words before. {sentence} Words after."))


def test_every_allowance_is_needed():
    texts = {page.stem: shown(page.read_text()) for page in PAGES}
    needless = [
        allowed.words
        for allowed in ALLOWED
        if not any(
            pattern.search(match[0])
            for name, text in texts.items()
            if allowed in on(name)
            for match in allowed.pattern.finditer(text)
            for pattern in MEASURED
        )
    ]
    assert not needless


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("rows[a=y].b", 4), ("rows[0].b / rows[a=y].b", 0.75), ("deep.8.c * 0.5 - 1", 2),
    ],
)  # fmt: skip
def test_paths(expression, value):
    assert evaluate(ROWS, expression) == value


@pytest.mark.parametrize("expression", ["rows[a=z].b", "deep.9", "missing", "rows[7]"])
def test_a_path_that_leads_nowhere_is_an_error(expression):
    with pytest.raises((KeyError, IndexError)):
        evaluate(ROWS, expression)


def test_a_number_does_not_start_a_line():
    with pytest.raises(ValueError, match="start of a line"):
        filled("words\n<!-- n: search images d -->16<!-- /n -->")


def test_names_are_read_as_words():
    for page in MADE:
        for _, file, expression, form, *_ in NUMBER.findall(page.read_text()):
            assert re.fullmatch(r"[\w/-]+", file)
            assert "|" not in expression + form, "a cell of a table would end there"
