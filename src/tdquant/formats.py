"""Versions of the formats that tdquant writes."""

from __future__ import annotations

from tdquant.errors import StorageError, TDQError


def check_version(
    found: int, known: int, where: str, error: type[TDQError] = StorageError
) -> None:
    """Refuses what a newer tdquant wrote.

    Arguments:
        found: Version that the file says.
        known: Newest version that this tdquant reads.
        where: The file.
        error: What to raise.

    Raises:
        StorageError: The file is newer; or what ``error`` says.
    """
    if found > known:
        raise error(
            f"format version {found}, newer than {known}", where=where, fix="update tdquant"
        )
