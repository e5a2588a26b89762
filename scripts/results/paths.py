"""The small language in which a marker says where its number stands in a results file.

    rows[model=cats-ldm,bits=W4A8].median / rows[model=cats-ldm,bits=W8A8].median
    memory.8.observe * 1e-6
    best(cats-ddpm, W4A4)

A path goes through dictionaries by names joined by dots, and into lists by a position or by the
values that an entry has, of which there must be exactly one. Numbers, paths and functions of
``register_number`` are combined by ``+ - * /`` between spaces, from left to right.
"""

import operator
import re
from typing import Any

from scripts.results.tables import NUMBERS

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
BETWEEN = re.compile(r" ([-+*/]) (?![^\[(]*[\])])")
STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]|\.")
CALL = re.compile(r"(\w+)\((.*)\)")


def evaluate(found: dict, expression: str) -> Any:
    """The value of an expression on the contents of a results file."""
    first, *rest = BETWEEN.split(expression)
    value = _term(found, first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATORS[sign](value, _term(found, term))
    return value


def _term(found: dict, term: str) -> Any:
    if call := CALL.fullmatch(term):
        words = [word.strip() for word in call[2].split(",") if word.strip()]
        return NUMBERS[call[1]](found, *words)
    try:
        return float(term)
    except ValueError:
        return _follow(found, term)


def _follow(found: Any, path: str) -> Any:
    for name, inside in STEP.findall(path):
        if name:
            found = found[name]
        elif "=" in inside:
            found = _only(found, inside)
        elif inside:
            found = found[int(inside)]
    return found


def _only(rows: list[dict], wanted: str) -> dict:
    pairs = [pair.strip().split("=", 1) for pair in wanted.split(",")]
    entries = [row for row in rows if all(str(row.get(key)) == value for key, value in pairs)]
    if len(entries) != 1:
        raise KeyError(f"{len(entries)} entries have {wanted}")
    return entries[0]
