"""Argument types that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def truth(text: str | bool) -> bool:
    """``True``, ``yes``, ``1`` and their opposites, as the published commands write them."""
    word = str(text).lower()
    if word in ("true", "t", "yes", "y", "1"):
        return True
    if word in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: True or False")


def overrides_among(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words into files and ``key.path=value`` overrides."""
    changes = [w for w in words if "=" in w and not Path(w).exists()]
    return [w for w in words if w not in changes], changes
