"""Writing files whole: a reader never sees half of one, and a failure leaves what was there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tdquant.errors import StorageError

_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY,
}  # fmt: skip
"""Errors of a file system that is full, closed to this process or broken."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises StorageError, which names ``path``, where a file system refuses to write."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        what = error.filename if isinstance(error.filename, str) else ""
        raise StorageError(
            "cannot be written",
            where=str(path),
            why=": ".join(filter(None, [what, str(error.strerror or error)])),
            fix="a folder that is writable and has room; what was there before is as it was",
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes its place when the context ends well.

    The folder is made if it is missing. If the context fails, the temporary file is removed.

    Arguments:
        path: The file to write.

    Raises:
        StorageError: The disk is full, or the place is read-only.
    """
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield fresh
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file that others may read as they may read any new file here: the library
    makes it the writer's alone.

    Arguments:
        tensors: Name -> tensor, contiguous, none sharing memory.
        path: The file.
        metadata: Words for its header.

    Raises:
        OSError: It cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # the library hides the system's error in its text
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)


def check_folder(directory: str | os.PathLike[str], mark: str) -> Path:
    """The folder's path, if it may be written: see ``replacing_folder``.

    Raises:
        StorageError: There is something of another kind already.
    """
    target = Path(directory).resolve()  # a link stays one, and "." has a name
    if target.exists() and not (
        target.is_dir() and (not any(target.iterdir()) or (target / mark).exists())
    ):
        raise StorageError(
            "there is something else already",
            where=str(target),
            fix=f"an empty folder, a new name, or an older folder with {mark} in it",
        )
    return target


@contextlib.contextmanager
def replacing_folder(directory: str | os.PathLike[str], mark: str) -> Iterator[Path]:
    """An empty folder beside ``directory``, which takes its place when the context ends well.

    Arguments:
        directory: The folder to write. It may be missing, empty, or an earlier one of its kind.
        mark: Name of the file by which folders of its kind are known.

    Raises:
        StorageError: There is something of another kind already, the disk is full, or the place is
            read-only.
    """
    with disk_errors(Path(directory)):
        target = check_folder(directory, mark)
        suffix = uuid.uuid4().hex[:8]
        fresh, old = (
            target.with_name(f".{target.name}.{suffix}.new"),
            target.with_name(f".{target.name}.{suffix}.old"),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.mkdir()
            yield fresh
            if target.exists():
                target.rename(old)
            fresh.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder beside ``directory``, which gets its name when the context ends well.

    Nothing that anybody put there is replaced, not even meanwhile.

    Arguments:
        directory: The folder to write. It may be missing or empty.

    Raises:
        StorageError: There is something already, or the disk takes no more.
    """
    target = Path(directory).resolve()
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.new")
    with disk_errors(target):
        try:
            check_new_folder(target)
            fresh.mkdir(parents=True)
            yield fresh
            check_new_folder(target)
            fresh.replace(target)  # takes the place of an empty folder, and of no other
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_new_folder(directory: str | os.PathLike[str]) -> None:
    """Raises StorageError unless the folder is missing or empty."""
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(
            "there is something already",
            where=str(target),
            fix="an empty folder, or a new name",
        )


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out
