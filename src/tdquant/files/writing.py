"""Atomic writes: after any failure there is the old file or folder, or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from torch import Tensor

from tdquant.files.checkpoints.safetensors_format import write_safetensors
from tdquant.files.checkpoints.tensors import LazyTensor
from tdquant.files.looking import exists, files_below
from tdquant.files.places import (
    check_file,
    check_folder,
    check_new_folder,
    disk_errors,
    resolved,
)
from tdquant.files.workspace import clean_up, flush, flush_entry, put, workspace


def replacing(path: Path) -> AbstractContextManager[Path]:
    """A temporary name for a new file, which replaces ``path`` if the context ends without error.

    The content is flushed to the disk first, so a crash at any moment leaves the old file or the
    new one. If the context fails, the new file is removed. Missing folders are created.

    Arguments:
        path: The file to write.

    Raises:
        StorageError: The disk is full, the place is read-only, or a folder is there.
    """
    return _successor(path, path)


def creating(path: Path) -> AbstractContextManager[Path]:
    """A temporary name for a new file, which gets the name ``path`` if the context ends without
    error, unless there is such a file by then: of processes that create one at once, the first
    wins. Otherwise as ``replacing``.

    Arguments:
        path: The file to write.

    Raises:
        StorageError: The disk is full, the place is read-only, or a folder is there.
    """
    return _successor(path, path, keeps=True)


def replacing_folder(
    directory: str | os.PathLike[str],
    mark: str,
    is_own: Callable[[str], bool] = lambda name: True,
) -> AbstractContextManager[Path]:
    """A new empty folder, which replaces ``directory`` if the context ends without error.

    A crash at any moment leaves the old folder or the new one; on systems that cannot swap two
    names in one step, ``recover`` completes that.

    Arguments:
        directory: The folder to write. It may be missing, empty, or an earlier one of its kind.
        mark: Name of the file by which folders of its kind are known.
        is_own: Whether the file at a relative path in the earlier folder was written with it.
            Other files are the user's and are kept in the new folder.

    Raises:
        StorageError: There is something of another kind already, the disk is full, or the place is
            read-only.
    """
    target = resolved(directory)

    def check(new: Path | None = None) -> None:
        check_folder(target, mark)
        if new is not None and _link_others(target, new, is_own):
            flush(new)

    return _successor(Path(directory), target, check, replaces=True)


def new_folder(directory: str | os.PathLike[str]) -> AbstractContextManager[Path]:
    """A new empty folder, which is renamed to ``directory`` if the context ends without error.

    It replaces nothing, also if something was put there meanwhile.

    Arguments:
        directory: The folder to write. It may be missing or empty.

    Raises:
        StorageError: There is something already, or the disk takes no more.
    """
    target = resolved(directory)
    return _successor(target, target, lambda new: check_new_folder(target))


def recover(directory: Path) -> None:
    """Restores a folder that is missing since a process was killed between the two renames of
    ``replacing_folder``. Readers of such folders call it first.
    """
    if not exists(directory):
        clean_up(directory.resolve())


@contextlib.contextmanager
def _successor(
    where: Path,
    target: Path,
    check: Callable[[Path | None], None] | None = None,
    replaces: bool = False,
    keeps: bool = False,
) -> Iterator[Path]:
    """The context of the four functions above.

    Arguments:
        where: The path for errors.
        target: The path, without links.
        check: For folders: raises if the target must not be written; called before the work and,
            with the new folder, just before it gets its name.
        replaces: Replace folders with content.
        keeps: Leave a file that is there by the end.
    """
    with disk_errors(where):
        if check is None:
            check_file(target)
        else:
            check(None)
        target.parent.mkdir(parents=True, exist_ok=True)
        with workspace(target) as place:
            new = place / "new"
            if check is not None:
                new.mkdir()
            yield new
            flush(new)
            if check is not None:
                check(new)
            if not (keeps and _linked(new, target)):
                put(place, target, replaces)
            if check is not None:
                flush_entry(target.parent)


def _linked(new: Path, target: Path) -> bool:
    """Whether a file has a name, or another file had it; not where there are no links. Linking
    replaces nothing, unlike renaming.
    """
    try:
        os.link(new, target)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


def _link_others(target: Path, new: Path, is_own: Callable[[str], bool]) -> bool:
    """Links files of an earlier folder that are not its own into the new one."""
    found = False
    for file in files_below(target):
        name = file.relative_to(target)
        if is_own(name.as_posix()):
            continue
        found = True
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, new / name, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a file system without such links
            shutil.copy2(file, new / name, follow_symlinks=False)
    return found


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Arguments:
        tensors: Name -> tensor.
        path: The file.
        metadata: Words for its header.

    Raises:
        OSError: It cannot be written.
    """
    lazy = {
        name: LazyTensor(tensor.shape, tensor.dtype, partial(Tensor.cpu, tensor.detach()))
        for name, tensor in tensors.items()
    }
    write_safetensors(lazy, path, metadata)


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as the safetensors library requires."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out
