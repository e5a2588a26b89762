"""Tables in the documentation are those that the committed results give."""

import importlib.util

import pytest

from tests.docs.programs import DOCS

SCRIPT = DOCS.parent / "scripts" / "result_tables.py"
spec = importlib.util.spec_from_file_location("result_tables", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
PAGES = [page for page in script.PAGES if script.TABLE.search(page.read_text())]


def test_there_are_tables():
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_of_the_committed_results(page):
    text = page.read_text()
    assert script.filled(text) == text, "run scripts/result_tables.py"
    start, *_ = script.TABLE.search(text).groups()
    assert script.filled(text.replace(f"{start}\n|", f"{start}\n| 9 |", 1)) == text
