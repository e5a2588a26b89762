"""Image files as tensors, without silent changes.

A distance between sets sees every difference in how images were prepared. So images of one size
are taken pixel by pixel, grey ones with their channel three times. Others need ``resize``, which
cuts the largest centred square and resizes it (bicubic, antialiased), as data sets are prepared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.files.digests import file_digest
from tdquant.lab.data.encoded import eight_bits, square
from tdquant.support.optional import require

_NAMED = 4


def check_pictures(files: Sequence[Path], resize: int | None = None) -> tuple[int, int]:
    """The common size ``(H, W)`` of all images once they are read; reads only their headers.

    Raises:
        DataError: They have several sizes, are not square, transparent, or cannot be read; all
            kinds of mistakes are listed.
    """
    image_module = require("PIL.Image", "data")
    sizes: Counter[tuple[int, int]] = Counter()
    damaged, transparent = [], []
    for file in files:
        try:
            with image_module.open(file) as image:
                sizes[image.size[1], image.size[0]] += 1
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    transparent.append(file.name)
        except Exception as error:  # decoders raise anything over damaged data
            damaged.append(f"{file.name}: {(str(error) or 'damaged').splitlines()[0]}")
    mistakes, fix = [], ""
    if damaged:
        mistakes.append(f"{len(damaged)} cannot be read: {_some(damaged)}")
    if transparent:
        mistakes.append(
            f"{len(transparent)} have transparency without a background: {_some(transparent)}"
        )
    if resize is None and len(sizes) > 1:
        common = ", ".join(f"{n} of {w}x{h}" for (h, w), n in sizes.most_common(_NAMED))
        mistakes.append(f"they are of {len(sizes)} sizes: {common}")
        fix = "--resize SIDE takes the largest centred square of each and resizes it"
    elif resize is None and any(h != w for h, w in sizes):
        height, width = next(iter(sizes))
        mistakes.append(f"they are {width}x{height}, and networks take squares")
        fix = "--resize SIDE takes the largest centred square and resizes it"
    if mistakes:
        what = "images that cannot be judged: " + "; ".join(mistakes)
        raise DataError(what, where=str(files[0].parent), fix=fix)
    return (resize, resize) if resize is not None else next(iter(sizes))


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def read_pictures(files: Sequence[Path], resize: int | None = None) -> Tensor:
    """Images that ``check_pictures`` accepted, uint8 ``(N, 3, H, W)``.

    Raises:
        DataError: An image is damaged.
    """
    images = []
    for file in files:
        try:
            with open(file, "rb") as stream:
                images.append(_read(stream, resize))
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError("a damaged image", where=str(file), why=reason) from error
    return torch.stack(images)


def _read(stream: Any, resize: int | None) -> Tensor:
    if resize is not None:
        return to_uint8(square(stream, resize))
    with require("PIL.Image", "data").open(stream) as image:
        pixels = np.array(eight_bits(image).convert("RGB"), dtype=np.uint8)  # repeats grey
    return torch.from_numpy(pixels).permute(2, 0, 1)


def preparation(size: tuple[int, int], resize: int | None) -> str:
    """In words, what was done to images of a size before the network saw them."""
    height, width = size
    how = "as they are" if resize is None else "centred squares resized, bicubic"
    return f"RGB {width}x{height}, {how}"


def content_digest(files: Sequence[Path]) -> str:
    """A digest of the content of files, in order, whatever their names and places."""
    together = "|".join(file_digest(file) for file in files)
    return hashlib.sha256(together.encode()).hexdigest()[:16]


def stat_digest(files: Sequence[Path]) -> str:
    """A digest of names, sizes and times of files, which changes with any image."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.name}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
