"""Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 in ten classes, from its IDX files.

An IDX file is two zero bytes, a type (8 for uint8), the number of dimensions d, d sizes as
big-endian 32-bit integers, and the values.

References:
    Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms, 2017 (https://arxiv.org/abs/1708.07747).
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tdquant.errors import DataError, raise_collected
from tdquant.files.looking import is_file
from tdquant.lab.data.base import StoredImages

ROOT = "/usr/share/datasets/fashion-mnist"
PREFIXES = {"train": "train", "test": "t10k"}
FITS = ("pad", "resize")


def fashion_mnist(
    root: str | os.PathLike[str] = ROOT,
    split: str = "train",
    size: int = 32,
    channels: int = 1,
    fit: str = "pad",
) -> StoredImages:
    """Fashion-MNIST as ``(channels, size, size)`` with labels 0 to 9. Nothing is downloaded.

    Arguments:
        root: Folder of the four IDX files, compressed (.gz) or not.
        split: ``"train"`` or ``"test"``.
        size: Side in pixels.
        channels: 1, or 3 equal ones.
        fit: ``"pad"`` puts black around the 28 x 28 pixels, ``"resize"`` scales them.

    Raises:
        DataError: An option is out of range, or files are missing or damaged.
    """
    mistakes = []
    if split not in PREFIXES:
        mistakes.append(f"split={split!r}: one of {', '.join(PREFIXES)}")
    if channels not in (1, 3):
        mistakes.append(f"channels={channels}: 1 or 3")
    if fit not in FITS:
        mistakes.append(f"fit={fit!r}: one of {', '.join(FITS)}")
    elif fit == "pad" and size < 28:
        mistakes.append(f"size={size}: padding starts at 28; fit='resize' makes smaller images")
    raise_collected(DataError, mistakes, "the options of fashion-mnist")
    prefix = Path(root) / PREFIXES[split]
    images = torch.from_numpy(read_idx(_present(f"{prefix}-images-idx3-ubyte"), 3))[:, None]
    labels = torch.from_numpy(read_idx(_present(f"{prefix}-labels-idx1-ubyte"), 1))
    if fit == "pad":
        spare = size - images.shape[-1]
        before, after = spare // 2, spare - spare // 2
        images = functional.pad(images, (before, after, before, after))
    images = images.expand(-1, channels, -1, -1)
    return StoredImages(images, labels.long(), "fashion-mnist", size)


def read_idx(path: str | os.PathLike[str], dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file.

    Arguments:
        path: The file; a name that ends in .gz is decompressed.
        dimensions: How many the array must have.

    Raises:
        DataError: The file is damaged or holds something else.
    """
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            found = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("an unreadable file", where=str(path), why=str(error)) from error
    start = 4 + 4 * dimensions
    if found[:4] != bytes((0, 0, 8, dimensions)) or len(found) < start:
        raise DataError(f"no IDX file of {dimensions} dimensions of uint8", where=str(path))
    shape = tuple(int(n) for n in np.frombuffer(found[4:start], dtype=">u4"))
    if len(found) - start != np.prod(shape, dtype=object):
        raise DataError(
            f"{len(found) - start} values where the header says {shape}",
            where=str(path),
            fix="the file is incomplete: copy it again",
        )
    return np.frombuffer(found, dtype=np.uint8, offset=start).reshape(shape).copy()


def _present(name: str) -> Path:
    """The file, compressed or not."""
    path, packed = Path(name), Path(f"{name}.gz")
    if is_file(path) or is_file(packed):
        return path if is_file(path) else packed
    raise DataError(
        "no Fashion-MNIST",
        where=str(path.parent),
        why=f"looked for {path.name} and {packed.name}",
        fix="get the four files from https://github.com/zalandoresearch/fashion-mnist and put "
        f"them into {path.parent}",
    )
