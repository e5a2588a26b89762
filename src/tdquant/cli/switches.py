"""Argument types that several commands take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tdquant.errors import TDQError


def truth(text: str | bool) -> bool:
    """``True``, ``yes``, ``1`` and their opposites, as the published commands write them."""
    word = str(text).lower()
    if word in ("true", "t", "yes", "y", "1"):
        return True
    if word in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: True or False")


def positive(text: str) -> int:
    """A whole number from 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: a whole number, 1 or more")


def overrides_among(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words into files and ``key.path=value`` overrides."""
    changes = [w for w in words if "=" in w and not Path(w).exists()]
    return [w for w in words if w not in changes], changes


def argument_of(word: str) -> tuple[str, Any]:
    """``KEY=VALUE`` as an argument of a pipeline, the value JSON or a word."""
    key, _, value = word.partition("=")
    try:
        return key.lstrip("-"), json.loads(value)
    except ValueError:
        return key.lstrip("-"), value


def changed_flags(options: argparse.Namespace, flags: Iterable[str]) -> list[str]:
    """Those of a command's flags that were given, as far as they are not at their defaults."""
    usual = options.overridden.get_default
    names = {flag: flag.replace("-", "_") for flag in flags}
    return [f"--{flag}" for flag, n in names.items() if getattr(options, n) != usual(n)]


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """The shape of a sample that ``3,32,32`` writes.

    Raises:
        TDQError: It is no list of positive whole numbers.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(side) for side in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise TDQError(f"--shape {text}", fix="whole numbers, such as 3,32,32")
    return shape
