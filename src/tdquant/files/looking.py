"""Looking whether a file or a folder is there, where a process may not look everywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tdquant.errors import StorageError


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path.

    Raises:
        StorageError: This process may not look into the folder that it is in.
    """
    with _refusals(path):
        return Path(path).exists()


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file at a path; errors as of ``exists``."""
    with _refusals(path):
        return Path(path).is_file()


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder at a path; errors as of ``exists``."""
    with _refusals(path):
        return Path(path).is_dir()


def entries(path: str | os.PathLike[str]) -> list[Path]:
    """What is in a folder, sorted; errors as of ``exists``, also where it may not be listed."""
    with _refusals(path):
        return sorted(Path(path).iterdir())


@contextlib.contextmanager
def _refusals(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            "this process may not look there",
            where=str(path),
            why=f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror),
            fix="permission to enter the folders on the way to it, or another place",
        ) from error
