"""Folders for the unfinished work of jobs, so that a stopped job can be resumed.

    FOLDER/job.json             what was asked for, its digest, and the names that the job created
    FOLDER/job.lock             locked while a process works here
    FOLDER/NAME.safetensors     a finished part: its tensors, and its facts as metadata

    with open_job(folder, "reconstruction", {"model": digest, "seed": 0}) as job:
        if (part := job.read("block-00003")) is None:
            job.write("block-00003", tensors, {"error": 0.01})
        ...
        job.remove()

Parts are written atomically. Other files in the folder are the user's and are never removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.documents import Document, FileName, json_safe
from tdquant.files.looking import entries, exists, is_file, is_folder
from tdquant.files.places import disk_errors
from tdquant.files.workspace import clean_up, lock_file
from tdquant.files.writing import replacing, write_tensors

INDEX, LOCK, SUFFIX = "job.json", "job.lock", ".safetensors"


class JobIndex(Document):
    """``job.json``."""

    FORMAT: ClassVar[str] = "tdquant-job-folder"
    VERSION: ClassVar[int] = 1

    kind: str
    asked: dict[str, Any]
    digest: str
    names: list[FileName]
    """Files and folders right in the folder."""


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        tensors: Name -> tensor.
        facts: What was stored beside them.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class JobFolder:
    """An open folder; see ``open_job``.

    Attributes:
        path: The folder.
        index: The content of ``job.json``.
        writes: Whether this process writes; in others, methods that write do nothing.
    """

    def __init__(self, path: Path, index: JobIndex, writes: bool) -> None:
        self.path, self.index, self.writes = path, index, writes

    def claim(self, name: str) -> Path:
        """Registers a file or folder that the job creates itself, so that ``remove`` removes it.

        Returns:
            Its path.

        Raises:
            StorageError: The index cannot be written.
        """
        if self.writes and name not in self.index.names:
            names = [*self.index.names, name]
            self.index = self.index.model_copy(update={"names": names})
            self.index.write(self.path / INDEX)
        return self.path / name

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes a part, or replaces it.

        Arguments:
            name: Its name.
            tensors: Name -> tensor.
            facts: Other data of the part, JSON-safe.

        Raises:
            StorageError: It cannot be written.
        """
        if not self.writes:
            return
        metadata = {"job": self.index.digest, "facts": json.dumps(json_safe(facts))}
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        with replacing(self.claim(name + SUFFIX)) as fresh:
            write_tensors(plain, fresh, metadata)

    def read(self, name: str) -> Part | None:
        """Reads a part; None if there is none.

        Raises:
            StorageError: It is damaged, or of another job.
        """
        file = self.path / (name + SUFFIX)
        if not exists(file):
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            job, facts = metadata["job"], json.loads(metadata["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
            raise StorageError(
                "a part of a job is damaged",
                where=str(file),
                why=f"{type(error).__name__}: {error}",
                fix="remove it, and it is made again",
            ) from error
        if job != self.index.digest:
            raise StorageError(
                f"a part of another {self.index.kind}", where=str(file), fix="remove it"
            )
        return Part(tensors, facts)

    def forget(self, name: str) -> None:
        """Removes a part if it exists."""
        if self.writes:
            with disk_errors(self.path):
                (self.path / (name + SUFFIX)).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes everything that the job created, and the folder unless it holds other files."""
        if self.writes:
            with disk_errors(self.path):
                _remove_own(self.path, self.index)
                (self.path / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the user's files stay
                self.path.rmdir()


@contextlib.contextmanager
def open_job(
    folder: Path,
    kind: str,
    asked: Mapping[str, Any],
    *,
    writes: bool = True,
    restart: bool = False,
) -> Iterator[JobFolder]:
    """Opens the folder of a job, a new one or that of a stopped run.

    Arguments:
        folder: The folder, which may be missing.
        kind: The kind of job in a word or two, such as ``"reconstruction"``.
        asked: Everything that determines the result, JSON-safe; tensors as digests.
        writes: Whether this process writes; one of several does.
        restart: Remove what another job left there, instead of raising.

    Returns:
        A context whose value is the open folder.

    Raises:
        StorageError: The folder holds files but no job, or another job without ``restart``;
            another process writes there; or the folder cannot be written.
    """
    wanted = _index(kind, asked)
    found = _find(folder)
    if not writes:
        if found is not None and found.digest != wanted.digest and not restart:
            raise _another(found, wanted, folder)
        yield JobFolder(folder, wanted, writes=False)
        return
    with contextlib.ExitStack() as stack:
        # Errors of the disk alone: those of the job's own work are none of the folder.
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_file(folder / LOCK, new=True)
            if lock is None:
                raise StorageError(
                    f"another process works on this {kind}", where=str(folder), fix="wait for it"
                )
            stack.callback(lock.close)
            found = _find(folder)  # another process may have changed it
            if found is not None and found.digest != wanted.digest:
                if not restart:
                    raise _another(found, wanted, folder)
                _remove_own(folder, found)
                found = None
            if found is None:
                wanted.write(folder / INDEX)
        yield JobFolder(folder, found or wanted, writes=True)


def _index(kind: str, asked: Mapping[str, Any]) -> JobIndex:
    plain = json_safe(asked)
    text = json.dumps([kind, plain], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return JobIndex(kind=kind, asked=plain, digest=digest, names=[])


def _find(folder: Path) -> JobIndex | None:
    """The index of the job in a folder; None if it is missing or empty."""
    if exists(folder / INDEX):
        return JobIndex.read(folder / INDEX, "the index of a job", "remove the folder")
    there = {file.name for file in entries(folder)} if is_folder(folder) else set()
    if is_file(folder) or any(n != LOCK and not n.startswith(f".{INDEX}.") for n in there):
        raise StorageError(
            "there is something else where unfinished work would lie",
            where=str(folder),
            why=f"it is no job's folder: it has no {INDEX}",
            fix="move it away, or give another folder",
        )
    return None


def _another(found: JobIndex, wanted: JobIndex, folder: Path) -> StorageError:
    keys = [k for k in wanted.asked | found.asked if wanted.asked.get(k) != found.asked.get(k)]
    return StorageError(
        f"the folder belongs to another {found.kind}",
        where=str(folder),
        why=f"of what was asked for, {', '.join(keys) or 'the kind of job'} differ",
        fix="start it as it was started, or give another folder",
    )


def _remove_own(folder: Path, index: JobIndex) -> None:
    """Removes what a job created; the index last, as the job can be resumed until then."""
    for name in index.names:
        place = folder / name
        clean_up(place)
        if is_folder(place) and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
