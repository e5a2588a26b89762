"""The errors of trials in a file, so that a calibration that was killed is not tried anew."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tdquant.errors import StorageError
from tdquant.files.documents import Document, Gap, Section
from tdquant.files.looking import exists, permitted
from tdquant.files.places import check_writable_file


class Entry(Section):
    """One trial: what was tried, and the error of the whole model."""

    what: str
    error: Gap


class TrialFile(Document):
    """The file.

    Attributes:
        key: Digest of everything that errors depend on.
        trials: Trials in the order in which they were made.
    """

    FORMAT: ClassVar[str] = "tdquant-trials"
    VERSION: ClassVar[int] = 1

    key: str
    trials: list[Entry]


_HEAD = 200
"""Bytes at the start of a file that identify its format."""


def check_log(path: str | os.PathLike[str]) -> None:
    """Checks that trials can be kept in a file, before the work that makes them.

    Raises:
        StorageError: It cannot be written, or there is a file of something else.
    """
    check_writable_file(path)
    with permitted(path):
        head = b""
        if exists(path):
            with open(path, "rb") as file:
                head = file.read(_HEAD)
    if head and TrialFile.FORMAT.encode() not in head:
        raise StorageError(
            "there is something else already",
            where=str(path),
            why="it would be replaced by the errors of trials",
            fix="a new name, or an earlier file of calibrate(checkpoint=)",
        )


class TrialLog:
    """Keeps the errors of trials, and gives those of an earlier process back. A calibration makes
    the same trials in the same order whenever it is run, so that the n-th is the n-th.

    Arguments:
        path: The file, or None to keep nothing. One that is damaged or of another calibration is
            replaced.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else Path(path)
        self._key, self._known, self._done = "", list[Entry](), list[Entry]()

    def open(self, key: str) -> None:
        """Reads the trials of the calibration with this key."""
        if self._path is None:
            return
        self._key = key
        try:
            found = TrialFile.read(self._path, "the file of trials")
        except StorageError:
            return
        self._known = list(found.trials) if found.key == key else []

    def measure(self, what: str, error: Callable[[], float]) -> float:
        """The error of the next trial: the known one, or what ``error`` measures.

        Raises:
            StorageError: The file cannot be written.
        """
        place = len(self._done)
        if place < len(self._known) and self._known[place].what == what:
            entry = self._known[place]
            self._done.append(entry)
            return math.nan if entry.error is None else entry.error
        self._known, found = [], error()
        self._done.append(Entry(what=what, error=found))
        if self._path is not None:
            TrialFile(key=self._key, trials=self._done).write(self._path)
        return found
