"""Weights of other people's networks: where they lie, what they are, and reading them safely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tdquant.errors import DataError, StorageError
from tdquant.files.caching import cache_folder
from tdquant.files.checkpoints import open_checkpoint
from tdquant.files.digests import file_digest


def find_weights(names: Sequence[str]) -> Path | None:
    """The first file of such a name in tdquant's cache or in that of ``torch.hub``.

    Arguments:
        names: Published names, which end in ``-`` and the beginning of the file's SHA-256.

    Raises:
        DataError: The file's SHA-256 is another.
    """
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    files = (folder / name for folder in folders for name in names)
    file = next((file for file in files if file.is_file()), None)
    if file is not None and not file_digest(file).startswith(published_digest(file.name)):
        raise DataError(
            "damaged weights: their SHA-256 is not that of their name",
            where=str(file),
            fix="delete the file",
        )
    return file


def published_digest(name: str) -> str:
    """The beginning of a published file's SHA-256, in which its name ends."""
    return Path(name).stem.rpartition("-")[2]


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file or one of ``torch.save``.

    Raises:
        DataError: The file is missing, damaged, or no state dict.
    """
    try:
        with open_checkpoint(path) as state:
            return {name: tensor.load() for name, tensor in state.items()}
    except StorageError as error:
        raise DataError(
            "weights that cannot be read", where=error.where, why=error.why or error.what,
            fix=error.fix,
        ) from error  # fmt: skip


def check_state(state: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """Compares names and shapes.

    Raises:
        DataError: Some are missing, unknown or of another shape; the first few are listed.
    """
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise DataError("weights of another network", where=where, why="; ".join(wrong[:6]) + more)
