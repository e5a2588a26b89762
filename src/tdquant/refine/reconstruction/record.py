"""Checkpoints of a reconstruction: a file for each finished block, and one of the block in work.

    FOLDER/block-00003.safetensors      codes, steps, biases and scales of a finished block
    FOLDER/learning.safetensors         variables and optimizer of the block in work

Each is written as a whole or not at all, and names the job that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tdquant.calls.call import Call
from tdquant.errors import StorageError
from tdquant.files.documents import Document
from tdquant.files.writing import replacing, write_tensors
from tdquant.training.structure import describe


class Header(Document):
    """The metadata of a file.

    Attributes:
        job: Digest of the job.
        facts: Facts beside the tensors.
    """

    FORMAT: ClassVar = "tdquant-reconstruction"
    VERSION: ClassVar = 1

    job: str
    facts: dict[str, Any]


def job_digest(model: nn.Module, calls: list[Call], options: dict[str, Any]) -> str:
    """SHA-256 of everything that decides the result: model, recipe, scales, calls and options."""
    digest = hashlib.sha256()
    digest.update(json.dumps([describe(model), options], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, value)
    for call in calls:
        _add(digest, call)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in value:
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())


@dataclass(frozen=True)
class Entry:
    """Tensors and facts of one file."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """The files of one job.

    Arguments:
        path: The folder.
        job: Digest of the job.
        writing: Whether this process writes; of several processes one does.
    """

    path: Path
    job: str
    writing: bool = True

    def block(self, number: int) -> Path:
        """The file of a finished block."""
        return self.path / f"block-{number:05d}.safetensors"

    @property
    def learning(self) -> Path:
        """The file of the block in work."""
        return self.path / "learning.safetensors"

    def write(self, file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes one file."""
        if not self.writing:
            return
        header = {"format": Header.FORMAT, "version": str(Header.VERSION), "job": self.job}
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with replacing(file) as fresh:
            write_tensors(plain, fresh, metadata={**header, "facts": json.dumps(facts)})

    def read(self, file: Path) -> Entry | None:
        """Reads one file; None if it is not there.

        Raises:
            StorageError: It is damaged, foreign, newer, or of another job.
        """
        if not file.exists():
            return None
        fix = "remove it, and its block is done again"
        try:
            with safe_open(file, framework="pt") as opened:
                content: dict[str, Any] = dict(opened.metadata() or {})
                tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
            for key in {"version", "facts"} & content.keys():
                content[key] = json.loads(content[key])
        except (SafetensorError, OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise StorageError(
                "a damaged checkpoint", where=str(file), why=why, fix=fix
            ) from error
        header = Header.from_dict(content, "the checkpoint", str(file), fix)
        if header.job != self.job:
            raise StorageError(
                "the checkpoint belongs to another reconstruction",
                where=str(file),
                why="model, recipe, calibration, batches, seed or options differ",
                fix="start it as it was started, or give another folder",
            )
        return Entry(tensors, header.facts)

    def forget_learning(self) -> None:
        """Removes the file of the block in work."""
        if self.writing:
            self.learning.unlink(missing_ok=True)
