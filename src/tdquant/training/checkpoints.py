"""Checkpoints of a training run: a folder each, whole or not there at all.

    checkpoints/step-00000500/{model,average,optimizer}.safetensors, state.json

A checkpoint is written under a temporary name, flushed to the disk and renamed; ``state.json``
carries the digest of every file and of itself. Whatever dies and whenever, the newest checkpoint
that is whole is found again. There is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.digests import file_digest
from tdquant.files.documents import check_version, read_json
from tdquant.files.looking import is_folder, matching
from tdquant.files.workspace import flush_entry
from tdquant.files.writing import unshared, write_tensors

FORMAT = "tdquant-training"
VERSION = 1
LAST_STEP = 99_999_999
"""The last step whose number fits the name of a folder."""

_NAME = re.compile(r"step-[0-9]{8}")
_UNFINISHED = re.compile(r"\.writing-[0-9]{8}-([0-9]+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and is whole.

    Attributes:
        path: Its folder.
        step: Steps that were done when it was written.
        state: Everything that is no tensor.
    """

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file: ``"model"``, ``"average"`` or ``"optimizer"``."""
        return load_file(self.path / f"{name}.safetensors")


class Checkpoints:
    """The checkpoints of one run: the folders ``step-`` and exactly eight digits. Whatever else is
    there is its user's, and left alone.

    Arguments:
        folder: Where they are, ``RUN/checkpoints``.
        keep: How many of the newest to keep, at least 1; two let one be damaged.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), max(keep, 1)

    def save(
        self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> Path | None:
        """Writes one and removes those that are too many, and what a crash left half written.

        Arguments:
            step: Steps done, at most LAST_STEP.
            tensors: The tensors of each file.
            state: Everything that is no tensor, JSON-safe.

        Returns:
            Its folder, or None if the disk did not take it: a warning says so, and the
            checkpoints before stay.
        """
        target = self.folder / f"step-{step:08d}"
        fresh = self.folder / f".writing-{step:08d}-{os.getpid()}"
        try:
            self._remove_unfinished()
            fresh.mkdir(parents=True)
            digests = {}
            for name, content in tensors.items():
                file = fresh / f"{name}.safetensors"
                write_tensors(unshared(content), file)
                digests[file.name] = file_digest(file)
                flush_entry(file, folder=False)
            index = {"format": FORMAT, "version": VERSION, "step": step, **state, "files": digests}
            (fresh / "state.json").write_text(
                json.dumps(index | {"digest": _digest(index)}, indent=1)
            )
            flush_entry(fresh / "state.json", folder=False)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
            flush_entry(self.folder)
        except (OSError, SafetensorError, StorageError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            warnings.warn(
                f"the checkpoint of step {step} could not be written ({error}); training goes on, "
                f"and the checkpoints before it in {self.folder} are as they were",
                stacklevel=2,
            )
            return None
        # Steps further on are of a run that this one began anew.
        own = [folder for folder in self._folders() if folder.name <= target.name]
        for old in set(self._folders()) - set(own[: self.keep]):
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest one that is whole, or None; damaged ones are passed over with a warning."""
        for folder in self._folders():
            try:
                return read_checkpoint(folder)
            except StorageError as error:
                warnings.warn(f"{error}\n  the checkpoint before it is taken", stacklevel=2)
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        there = matching(self.folder, "step-*")
        found = [f for f in there if _NAME.fullmatch(f.name) and is_folder(f)]
        return sorted(found, reverse=True)

    def _remove_unfinished(self) -> None:
        """Removes what processes that are gone were writing, and what this one left."""
        for folder in matching(self.folder, ".writing-*"):
            match = _UNFINISHED.fullmatch(folder.name)
            # A process has the number of one before it, after a restart of its container.
            if match and (int(match[1]) == os.getpid() or not _lives(int(match[1]))):
                shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads the state of a checkpoint and verifies its files.

    Raises:
        StorageError: It is damaged, incomplete, or of a newer format.
    """
    folder = Path(folder)
    try:
        state = read_json(folder / "state.json", "state.json")
        # The first versions had no digest of the state itself.
        whole = "digest" not in state or state.pop("digest") == _digest(state)
        files = state.pop("files")
        step = state["step"]
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']!r}")
        version = state["version"]
        if not isinstance(step, int) or not isinstance(version, int):
            raise ValueError(f"step {step!r}, version {version!r}")
        bad = [name for name, digest in files.items() if file_digest(folder / name) != digest]
        bad += [] if whole else ["state.json"]
    except (StorageError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            "a damaged checkpoint", where=str(folder), why=f"{type(error).__name__}: {error}"
        ) from error
    check_version(version, VERSION, str(folder))
    if bad:
        raise StorageError(
            "a damaged checkpoint",
            where=str(folder),
            why=f"{', '.join(bad)}: not what was written",
        )
    return Checkpoint(folder, step, state)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _lives(process: int) -> bool:
    """Whether there is a process with this number on this machine."""
    try:
        os.kill(process, 0)  # signal 0 only asks
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
