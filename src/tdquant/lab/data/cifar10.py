"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 in ten classes, from either archive.

A record is one label and 3072 bytes: the red, green and blue planes, row by row. A file of the
binary archive holds 10,000 of them; the python archive holds the same as pickles, which are read
without running anything.

References:
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009
    (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdquant.errors import DataError
from tdquant.files.checkpoints.unpickling import unpickle
from tdquant.files.looking import is_file
from tdquant.lab.data.base import StoredImages

BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_PIXELS = 3 * 32 * 32


def cifar10(
    root: str | os.PathLike[str] = "data", split: str = "train", size: int = 32
) -> StoredImages:
    """CIFAR-10 as ``(3, size, size)`` with labels 0 to 9. Nothing is downloaded.

    Arguments:
        root: The extracted folder, ``cifar-10-batches-py`` or ``-bin``, or the folder it lies in.
        split: ``"train"`` or ``"test"``.
        size: Side in pixels; another than 32 is resized.

    Raises:
        DataError: The split is unknown, or files are missing or damaged.
    """
    if split not in BATCHES:
        raise DataError(f"no split {split!r}", where="cifar10", fix=f"one of {list(BATCHES)}")
    parts = [_batch(file) for file in _files(Path(root), BATCHES[split])]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = torch.tensor([label for _, labels in parts for label in labels])
    return StoredImages(torch.from_numpy(pixels), labels, "cifar10", size)


def _files(root: Path, batches: list[str]) -> list[Path]:
    """The files of all ``batches`` in the first place that has one of them."""
    for place in (root, *(root / name for name in FOLDERS)):
        for suffix in ("", ".bin"):
            files = [place / f"{batch}{suffix}" for batch in batches]
            missing = [file.name for file in files if not is_file(file)]
            if not missing:
                return files
            if len(missing) < len(files):
                raise DataError(
                    f"CIFAR-10 is incomplete: no {', '.join(missing)}",
                    where=str(place),
                    fix="extract the archive again",
                )
    raise DataError(
        "no CIFAR-10",
        where=str(root),
        why=f"looked for {batches[0]} and {batches[0]}.bin in {root.absolute()} and, below it, in "
        f"{' and '.join(FOLDERS)}",
        fix="get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and "
        f"extract it in {root}",
    )


def _batch(file: Path) -> tuple[np.ndarray, list[int]]:
    """Reads the pixels, uint8 ``(N, 3072)``, and the labels of one file of either archive."""
    data: Any = None
    labels: Any = None
    if file.suffix == ".bin":
        found = np.fromfile(file, dtype=np.uint8)
        if len(found) % (1 + _PIXELS):
            raise DataError(
                f"{len(found)} bytes, not a multiple of {1 + _PIXELS}",
                where=str(file),
                fix="extract the archive again",
            )
        records = found.reshape(-1, 1 + _PIXELS)
        data, labels = records[:, 1:], records[:, 0].tolist()
    else:
        batch = read_pickle(file)
        if isinstance(batch, dict):
            batch = {
                k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()
            }
            data, labels = getattr(batch.get("data"), "values", None), batch.get("labels")
    if (
        not isinstance(data, np.ndarray)
        or not isinstance(labels, list)
        or not labels
        or data.shape != (len(labels), _PIXELS)
        or not all(type(label) is int and 0 <= label < 10 for label in labels)
    ):
        raise DataError(
            "no batch of CIFAR-10",
            where=str(file),
            why=f"it has an array data of uint8 (N, {_PIXELS}), and N labels from 0 to 9",
            fix="extract the archive again",
        )
    return data, labels


class _Bytes:
    """A pickled uint8 array, whose content the pickle gives after it was made."""

    def __init__(self, *_: object) -> None:
        self.values = np.zeros(0, np.uint8)

    def fill(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        if kind not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError("an array of other than bytes")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.values = np.frombuffer(raw, np.uint8).reshape(
            shape, order="F" if columns_first else "C"
        )


def _no_call(*_: object) -> Any:
    raise pickle.UnpicklingError("an array that is made by hand")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _no_call,
    "numpy.dtype": lambda name, *_: name,
    "numpy.core.multiarray._reconstruct": _Bytes,
    "numpy._core.multiarray._reconstruct": _Bytes,
    # How Python 3 writes bytes in the protocols of Python 2.
    "_codecs.encode": lambda text, *_: text.encode("latin1"),
}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads plain containers and uint8 arrays from a pickle, without running it.

    Raises:
        DataError: The file is damaged, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            return unpickle(file, _FUNCTIONS, strict=True)
    except (pickle.UnpicklingError, OSError) as error:
        raise DataError(
            "a pickle that cannot be read safely",
            where=str(path),
            why=str(error) or type(error).__name__,
            fix="extract the published archive again; nothing of this file was run",
        ) from error
