"""Where files and folders can be written, looked at before the work that fills them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tdquant.errors import StorageError
from tdquant.files.looking import entries, exists, is_folder
from tdquant.files.workspace import workspace

_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP,
}  # fmt: skip
"""Errors of a file system that is full, closed to this process or broken."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises StorageError, which names ``path``, where a file system refuses to write, also to a
    file within, whose own error would name a temporary place.
    """
    try:
        yield
    except (OSError, StorageError) as raised:
        error = raised.__cause__ if isinstance(raised, StorageError) else raised
        if not isinstance(error, OSError):
            raise
        nowhere = error.errno == errno.ENOENT and not path.parent.exists()  # as below /proc
        if error.errno not in _DISK and not nowhere:
            raise
        what = error.filename if isinstance(error.filename, str) else ""
        raise StorageError(
            "cannot be written",
            where=str(path),
            why=": ".join(filter(None, [what, str(error.strerror or error)])),
            fix="a folder that is writable and has room; what was there before is as it was",
        ) from error


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path without links, so that a link stays one, and ``"."`` has a name.

    Raises:
        StorageError: It is no path.
    """
    try:
        return Path(path).resolve()
    except (ValueError, RuntimeError) as error:  # a null character, a loop of links
        raise _no_path(path, str(error)) from error


def check_file(path: str | os.PathLike[str]) -> None:
    """Checks that there may be a file at a path.

    Raises:
        StorageError: A folder is there, or it is no name.
    """
    target = Path(path)
    if not target.name or "\0" in str(path):
        raise _no_path(path, "it names no file")
    if is_folder(target):
        raise StorageError(
            "a folder is there", where=str(path), fix="the name of a file, such as one in it"
        )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks, by trying, that something can be written at a path, before the long work whose
    result it will be. Nothing is made or left behind.

    Raises:
        StorageError: It cannot.
    """
    place = resolved(path)
    while not exists(place.parent):  # folders that the work will make
        place = place.parent
    with disk_errors(Path(path)), workspace(place):
        pass


def check_writable_file(path: str | os.PathLike[str]) -> None:
    """As ``check_writable``, of a file: a folder is refused."""
    check_file(path)
    check_writable(path)


def check_writable_folder(path: str | os.PathLike[str]) -> None:
    """As ``check_writable``, of files in a folder: a file in its place is refused."""
    target = resolved(path)
    if exists(target) and not is_folder(target):
        raise StorageError("no folder", where=str(path), fix="an empty folder, or a new name")
    check_writable(target / "new")


def check_folder(directory: str | os.PathLike[str], mark: str) -> Path:
    """The folder's path without links, if ``replacing_folder`` may write it.

    Raises:
        StorageError: There is something of another kind already.
    """
    target = resolved(directory)
    if _taken(target) and not exists(target / mark):
        raise StorageError(
            "there is something else already",
            where=str(target),
            fix=f"an empty folder, a new name, or an older folder with {mark} in it",
        )
    return target


def check_new_folder(directory: str | os.PathLike[str]) -> None:
    """Raises StorageError unless the folder is missing or empty."""
    target = Path(directory)
    if _taken(target):
        raise StorageError(
            "there is something already",
            where=str(target),
            fix="an empty folder, or a new name",
        )


def _taken(target: Path) -> bool:
    return exists(target) and (not is_folder(target) or any(entries(target)))


def _no_path(path: str | os.PathLike[str], why: str) -> StorageError:
    return StorageError(f"{str(path)!r} is no path", why=why, fix="another name")
