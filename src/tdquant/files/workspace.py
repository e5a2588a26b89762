"""Workspaces: hidden folders beside a file or folder, in which its new version is written.

    .NAME.tdquant-0/new     the new version; after a swap, the old one
    .NAME.tdquant-0/old     the old version, if the system cannot swap two names in one step
    .NAME.tdquant-0/lock    locked while the writing process is alive

A killed process leaves its workspace behind. The next write of NAME removes it, and restores
``old`` if the process died between two renames.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tdquant.files.looking import is_file

try:
    import fcntl
except ImportError:  # Windows: workspaces of killed processes stay there
    fcntl = None  # type: ignore[assignment]

_NUMBERS = range(8)
"""Processes that write one file at once, as a rule one."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
"""Errors of file systems that cannot flush folders."""


@contextlib.contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty workspace of a file or folder, removed when the context ends.

    Raises:
        OSError: It cannot be made.
    """
    clean_up(target)
    place, lock = _claim(target)
    with lock:
        try:
            yield place
        finally:
            _remove(place, target)


def clean_up(target: Path) -> None:
    """Removes the workspaces of processes that were killed while they wrote ``target``."""
    for number in _NUMBERS:
        place = _place(target, number)
        if place.is_dir():
            with contextlib.suppress(OSError):
                lock = lock_file(place / "lock")
                if lock is not None:
                    with lock:
                        _remove(place, target)


def is_left_over(place: Path) -> bool:
    """Whether a path is the workspace of a process that was killed, or that is at work."""
    return re.fullmatch(r"\..+\.tdquant-\w+", place.name) is not None and is_file(place / "lock")


def put(place: Path, target: Path, replace_folder: bool = False) -> None:
    """Renames ``new`` of a workspace to ``target``. At every moment the old or the new version has
    that name, or ``clean_up`` restores the old one.

    Arguments:
        place: The workspace.
        target: The name. A file there is replaced by a file, an empty folder by a folder.
        replace_folder: Replace a folder with content as well.

    Raises:
        OSError: It cannot be renamed.
    """
    new, old = place / "new", place / "old"
    try:
        os.replace(new, target)
    except OSError as error:
        if not replace_folder or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(new, target):
            os.rename(target, old)
            os.rename(new, target)
            os.rename(old, new)  # from now on it is not restored


def flush(path: Path) -> None:
    """Waits until a file, or a folder with its content, is on the disk: a rename may get there
    before the content.

    Raises:
        OSError: The disk does not take it.
    """
    folder = path.is_dir()
    for child in path.iterdir() if folder else ():
        if not child.is_symlink():
            flush(child)
    flush_entry(path, folder)


def flush_entry(path: Path, folder: bool = True) -> None:
    """Waits until the content of a file or the names in a folder are on the disk.

    Raises:
        OSError: The disk does not take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno not in _NO_FLUSH:
            raise


def lock_file(path: Path, new: bool = False) -> BinaryIO | None:
    """Locks a file until it is closed or the process ends. A missing file is created.

    Arguments:
        path: The file.
        new: Whether the file may be taken on a file system that has no locks: nobody can tell then
            whether another process has it.

    Returns:
        The open file, or None if another process holds the lock or has removed the file.

    Raises:
        OSError: The file cannot be created.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115
    except FileNotFoundError:
        return None
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:
        mine = new
    if mine:
        return file
    file.close()
    return None


def _place(target: Path, word: object) -> Path:
    return target.with_name(f".{target.name}.tdquant-{word}")


def _claim(target: Path) -> tuple[Path, BinaryIO]:
    """A new workspace and its lock."""
    while True:
        for word in [*_NUMBERS, uuid.uuid4().hex[:8]]:
            place = _place(target, word)
            try:
                place.mkdir()
            except FileExistsError:
                continue
            try:
                lock = lock_file(place / "lock", new=True)
            except OSError:
                place.rmdir()
                raise
            if lock is not None:  # else a process took it for that of a dead one
                return place, lock


def _remove(place: Path, target: Path) -> None:
    if (place / "old").exists() and not target.exists():
        os.rename(place / "old", target)
    shutil.rmtree(place, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
