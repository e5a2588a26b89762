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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdquant.errors import DataError
from tdquant.lab.data.base import StoredImages
from tdquant.lab.data.unpickling import read_pickle

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
    parts = [
        (_binary if file.suffix == ".bin" else _pickled)(file)
        for file in _files(Path(root), BATCHES[split])
    ]
    images = torch.cat([images for images, _ in parts])
    return StoredImages(images, torch.cat([labels for _, labels in parts]), "cifar10", size)


def _files(root: Path, batches: list[str]) -> list[Path]:
    """The files of all ``batches`` in the first place that has one of them."""
    for place in (root, *(root / name for name in FOLDERS)):
        for suffix in ("", ".bin"):
            files = [place / f"{batch}{suffix}" for batch in batches]
            missing = [file.name for file in files if not file.is_file()]
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


def _binary(file: Path) -> tuple[Tensor, Tensor]:
    """Images and labels of one file of the binary archive."""
    found = np.fromfile(file, dtype=np.uint8)
    if not len(found) or len(found) % (1 + _PIXELS):
        raise DataError(
            f"{len(found)} bytes, no multiple of {1 + _PIXELS}",
            where=str(file),
            fix="extract the archive again",
        )
    records = found.reshape(-1, 1 + _PIXELS)
    return _checked(file, records[:, 1:], records[:, 0])


def _pickled(file: Path) -> tuple[Tensor, Tensor]:
    """Images and labels of one file of the python archive."""
    found = read_pickle(file)
    if isinstance(found, dict):
        found = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("data"), np.ndarray)
        or not isinstance(found.get("labels"), list)
        or not all(isinstance(label, int) for label in found["labels"])
    ):
        raise DataError(
            "no batch of CIFAR-10", where=str(file), why="no array data and list labels in it"
        )
    return _checked(file, found["data"], found["labels"])


def _checked(file: Path, data: object, labels: object) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``, if that is what they are."""
    pixels, classes = np.asarray(data), np.asarray(labels)
    if (
        pixels.dtype != np.uint8
        or classes.ndim != 1
        or pixels.shape != (len(classes), _PIXELS)
        or classes.dtype.kind not in "iu"
        or not np.isin(classes, range(10)).all()
    ):
        raise DataError(
            f"data of shape {pixels.shape} and type {pixels.dtype}, labels of shape "
            f"{classes.shape} and type {classes.dtype}",
            where=str(file),
            why=f"a batch of CIFAR-10 has uint8 (N, {_PIXELS}) and N labels from 0 to 9",
        )
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(classes.astype(np.int64))
