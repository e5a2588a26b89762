"""Reads committed results, and keeps the functions that make text of them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "": ROOT / "benchmarks" / "results",
    "studies": ROOT / "studies" / "results",
    "models": ROOT / "src" / "tdquant" / "models" / "weights",
}

TABLES: dict[str, Callable[[dict], str]] = {}
"""Function name -> what makes a table of the contents of a results file."""
NUMBERS: dict[str, Callable[..., Any]] = {}
"""Function name -> what computes one number from them; further arguments are words."""


def register_table(function: Callable[[dict], str]) -> Callable[[dict], str]:
    """Makes a function known to the markers of tables."""
    return _registered(TABLES, function)


def register_number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function known to the markers of numbers."""
    return _registered(NUMBERS, function)


def _registered(known: dict, function: Callable) -> Callable:
    if function.__name__ in known:
        raise ValueError(f"two functions are called {function.__name__}")
    known[function.__name__] = function
    return function


@functools.cache
def results(name: str) -> dict:
    """The contents of ``benchmarks/results/NAME.json``, of a study, ``studies/NAME``, or of what
    comes with an embedded model, ``models/NAME``. ``studies`` are all studies by name, ``cards``
    those of the small models.
    """
    if name == "studies":
        files = sorted(FOLDERS["studies"].glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}
    if name == "cards":
        files = sorted((ROOT / "studies" / "models").glob("*/card.json"))
        return {file.parent.name: json.loads(file.read_text()) for file in files}
    folder, _, stem = name.rpartition("/")
    return json.loads((FOLDERS[folder] / f"{stem}.json").read_text())


def markdown(head: list[str], rows: list[list[object]], numbers: slice) -> str:
    """A table; columns of ``numbers`` are aligned to the right."""
    rule = ["---"] * len(head)
    rule[numbers] = ["---:"] * len(rule[numbers])
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@register_number
def where(found: dict) -> str:
    """The machine of a result, in words."""
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}, torch "
        f"{machine['torch']}"
    )


def threads(found: dict) -> str:
    """The machine of a result with the threads that it used, as the end of a sentence."""
    count = found["machine"]["threads"]
    return f"{count} thread{'s' if count > 1 else ''} of {where(found)}"
