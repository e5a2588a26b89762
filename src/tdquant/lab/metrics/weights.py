"""Weights of published networks: finding, verifying and reading them safely."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tdquant.errors import DataError, StorageError
from tdquant.files.caching import cache_folder
from tdquant.files.checkpoints import open_checkpoint
from tdquant.files.digests import file_digest
from tdquant.files.looking import is_file
from tdquant.files.writing import replacing

_NAMED = 6


def find_weights(names: Sequence[str], url: str, download: bool | None = None) -> Path:
    """The first file of one of these names in tdquant's cache or in that of ``torch.hub``.

    Arguments:
        names: Published names, which end in ``-`` and the beginning of the file's SHA-256.
        url: The published address.
        download: Download a missing file; None if the caller has no such option.

    Raises:
        DataError: The file is missing or cannot be downloaded, or has another SHA-256.
    """
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    files = (folder / name for folder in folders for name in names)
    file = next((file for file in files if is_file(file)), None)
    if file is None:
        target = cache_folder() / names[0]
        if download:
            return _download(url, target)
        option = "" if download is None else ", or download=True"
        raise DataError(
            f"the weights {names[0]} were not found",
            where=str(cache_folder()),
            fix=f"put {url} into that folder, give the file{option}",
        )
    if not file_digest(file).startswith(published_digest(file.name)):
        raise DataError(
            "damaged weights: their SHA-256 does not match their name",
            where=str(file),
            fix="delete the file",
        )
    return file


def _download(url: str, file: Path) -> Path:
    try:
        with replacing(file) as fresh:
            torch.hub.download_url_to_file(url, str(fresh), published_digest(file.name))
    except (OSError, RuntimeError) as error:
        raise DataError(
            "the weights could not be downloaded",
            where=url,
            why=str(error),
            fix=f"put the file here by other means, as {file}",
        ) from error
    return file


def published_digest(name: str) -> str:
    """The beginning of a file's SHA-256 as its published name ends in it."""
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


@contextlib.contextmanager
def loading(file: Path, fix: str = "") -> Iterator[None]:
    """Turns torch's error over a state dict that does not fit into a DataError.

    Raises:
        DataError: Names or shapes of ``file`` are those of another network; the first few are
            listed.
    """
    try:
        yield
    except RuntimeError as error:
        first, *wrong = str(error).split("\n\t")
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        why = "; ".join(wrong[:_NAMED]) + more if wrong else first
        raise DataError("weights of another network", where=str(file), why=why, fix=fix) from error
