"""What the files that tdquant writes have in common: versions, and what JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tdquant.errors import StorageError, TDQError


def check_version(
    found: Any, known: int, where: str, error: type[TDQError] = StorageError
) -> None:
    """Refuses what a newer tdquant wrote, and what is no version.

    Arguments:
        found: Version that the file says.
        known: Newest version that this tdquant reads.
        where: The file.
        error: What to raise.

    Raises:
        StorageError: The file is newer, or its version no whole number from 1; or what ``error``
            says.
    """
    if type(found) is not int or found < 1:  # true is an int
        raise error(f"format version {found!r}", where=where, why="it is 1 or more")
    if found > known:
        raise error(
            f"format version {found}, newer than {known}", where=where, fix="update tdquant"
        )


def json_safe(value: Any) -> Any:
    """The value with plain dictionaries and lists, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
