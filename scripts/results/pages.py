"""Fills tables and numbers into the pages of the documentation.

A table stands between two comments, of which the first names a function and, where its results
file has another name, the file::

    <!-- table: scripts/result_tables.py FILE.NAME -->
    <!-- end of table -->

A number stands in a sentence, between two comments that a reader of the page does not see. The
first has the file, where the number is in it (``paths.py``) and a format of Python::

    It takes <!-- n: search sensitivity_seconds .0f -->56<!-- /n --> s.

``FILE`` is one in benchmarks/results, or ``studies/NAME``.
"""

import re

from scripts.results import (  # noqa: F401
    alternatives,
    cards,
    claims,
    cost,
    demo,
    fair_lsq,
    fewer_steps,
    gain,
    measures,
    movement,
    parts,
    peers,
    ptq,
    published,
    reliability,
    speed,
    studies,
    training,
)
from scripts.results.paths import evaluate
from scripts.results.tables import ROOT, TABLES, results

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(
    r"(<!-- table: scripts/result_tables\.py (?:([\w/]+)\.)?(\w+) -->\n)"
    r".*?(<!-- end of table -->)",
    re.S,
)
NUMBER = re.compile(r"(<!-- n: (\S+) (.+?) (\S+) -->)(.*?)(<!-- /n -->)", re.S)
AT_THE_START = re.compile(r"^<!-- (?:n:|/n)", re.M)


def filled(text: str) -> str:
    """A page with its tables and numbers made anew."""
    # Markdown takes a comment at the start of a line for a paragraph of its own.
    if found := AT_THE_START.search(text):
        raise ValueError(f"a number at the start of a line: {text[found.start() :][:80]}")
    return NUMBER.sub(_number, TABLE.sub(_table, text))


def _table(match: re.Match[str]) -> str:
    start, file, name, end = match.groups()
    return f"{start}\n{TABLES[name](results(file or name))}\n\n{end}"


def _number(match: re.Match[str]) -> str:
    start, file, expression, form, _, end = match.groups()
    return f"{start}{evaluate(results(file), expression):{form}}{end}"
