"""Looking whether a file or a folder is there, where a process may not look everywhere."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tdquant.errors import StorageError


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path.

    Raises:
        StorageError: This process may not look into the folder that it is in.
    """
    with permitted(path):
        return Path(path).exists()


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file at a path; errors as of ``exists``."""
    with permitted(path):
        return Path(path).is_file()


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder at a path; errors as of ``exists``."""
    with permitted(path):
        return Path(path).is_dir()


def entries(path: str | os.PathLike[str]) -> list[Path]:
    """What is in a folder, sorted; errors as of ``exists``, also where it may not be listed."""
    with permitted(path):
        return sorted(Path(path).iterdir())


def matching(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """What is in a folder under names that match a pattern such as ``*.json``, sorted; nothing if
    there is no such folder. Errors as of ``entries``, where ``Path.glob`` would find nothing.
    """
    found = entries(folder) if is_folder(folder) else []
    return [path for path in found if fnmatchcase(path.name, pattern)]


def files_below(folder: str | os.PathLike[str]) -> list[Path]:
    """The files and links in a folder and in all folders below, sorted. Links are not followed.

    Raises:
        StorageError: This process may not look into one of the folders.
    """
    found: list[Path] = []
    for place, inside, names in walk(folder):
        links = (name for name in inside if (place / name).is_symlink())
        found += [place / name for name in (*names, *links)]
    return sorted(found)


def walk(
    folder: str | os.PathLike[str], follow: bool = False
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``os.walk`` that refuses a folder into which this process may not look, instead of leaving
    it out.

    Raises:
        StorageError: There is one.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            with permitted(error.filename or folder):
                raise error

    for place, inside, names in os.walk(folder, onerror=refuse, followlinks=follow):
        yield Path(place), inside, names


@contextlib.contextmanager
def permitted(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises StorageError, which names the path, where the system refuses to look or to read."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            "this process may not look there",
            where=str(path),
            why=f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror),
            fix="permission to enter the folders on the way to it, or another place",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise StorageError(
            "no usable path", where=str(path), why=str(error.strerror), fix="another name"
        ) from error
