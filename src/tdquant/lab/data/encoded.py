"""Encoded images (png, jpeg, webp, ...) from files or a key-value store, and what to do with those
that cannot be read.

An image is turned as its EXIF orientation says, converted to RGB, cut to the largest centred
square and resized: the preparation of latent diffusion's LSUN data, in the same order.

Some images of a large set are always damaged. One whose header cannot be read is left out at the
start; one that turns out damaged further in is replaced by the next image, so that an epoch keeps
its length. Both are named in a warning and listed in ``unreadable``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tdquant.errors import DataError, first_line, raise_collected
from tdquant.lab.data.base import ImageDataset
from tdquant.support.optional import require
from tdquant.support.progress import track

INTERPOLATIONS = ("nearest", "box", "bilinear", "linear", "hamming", "bicubic", "lanczos")
_NAMED = 8


class Source:
    """Encoded images by their index: here, files.

    Arguments:
        names: One name an image, that of the file.
        place: The folder or store, for messages.
    """

    def __init__(self, names: Sequence[str], place: str) -> None:
        self.names, self.place = names, place

    def open(self, index: int) -> BinaryIO:
        """Opens a stream of the bytes of image ``index``."""
        return open(self.names[index], "rb")


class EncodedImages(ImageDataset):
    """RGB images ``(3, size, size)``, decoded on access.

    Arguments:
        source: Where the bytes come from.
        name: Name of the data set.
        size: Side in pixels.
        interpolation: How to resize: one of ``INTERPOLATIONS``.
        check: Reads every header now. Without it, damaged images are found while training.
        progress: Shows a bar over the check.

    Raises:
        DataError: An option is out of range, there are no images, or none can be read.
        MissingDependencyError: Pillow is not installed.

    Attributes:
        unreadable: Names of the images that could not be read so far; with workers, each process
            has a list of its own.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        size: int,
        interpolation: str = "bicubic",
        check: bool = True,
        progress: bool = True,
    ) -> None:
        mistakes = [] if size >= 1 else [f"size={size}: at least 1"]
        if interpolation not in INTERPOLATIONS:
            mistakes.append(f"interpolation={interpolation!r}: one of {', '.join(INTERPOLATIONS)}")
        raise_collected(DataError, mistakes, f"the options of {name}")
        if not source.names:
            raise DataError("no images", where=source.place)
        require("PIL.Image", "data")
        self.source, self.name, self.size = source, name, size
        self.interpolation = "bilinear" if interpolation == "linear" else interpolation
        self.unreadable: list[str] = []
        self._broken: set[int] = set()
        self._kept = np.arange(len(source.names))
        if check:
            self._check_headers(progress)

    def _check_headers(self, progress: bool) -> None:
        """Leaves out the images whose headers cannot be read."""
        image_module = require("PIL.Image", "data")
        names, reasons = self.source.names, {}
        for index in track(self._kept.tolist(), f"{self.name}: headers", show=progress):
            try:
                with self.source.open(index) as stream, image_module.open(stream):
                    pass
            except Exception as error:  # decoders raise anything over damaged data
                reasons[index] = first_line(error)
        if not reasons:
            return
        self.unreadable = [names[index] for index in reasons]
        self._kept = np.delete(self._kept, list(reasons))
        reason = next(iter(reasons.values()))
        if not len(self._kept):
            raise self._nothing_left(reason)
        rest = len(reasons) - _NAMED
        warnings.warn(
            f"{len(reasons)} of {len(names)} images of {self.source.place} cannot be read and are "
            f"left out: {', '.join(self.unreadable[:_NAMED])}"
            + (f" and {rest} more" if rest > 0 else "")
            + f" ({reason})",
            stacklevel=4,
        )

    def _nothing_left(self, reason: str) -> DataError:
        return DataError(
            f"none of {len(self.source.names)} images can be read",
            where=self.source.place,
            why=f"{self.unreadable[0]}: {reason}",
        )

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Tensor:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(index)
        reason = "damaged"
        for place in range(index, index + count):
            chosen = int(self._kept[place % count])
            if chosen in self._broken:
                continue
            try:
                with self.source.open(chosen) as stream:
                    return square(stream, self.size, self.interpolation)
            except Exception as error:
                reason = first_line(error)
                self._broken.add(chosen)
                self.unreadable.append(self.source.names[chosen])
                warnings.warn(
                    f"{self.source.names[chosen]} cannot be read ({reason}); the next image takes "
                    "its place",
                    stacklevel=2,
                )
        raise self._nothing_left(reason)


def square(stream: BinaryIO, size: int, interpolation: str = "bicubic") -> Tensor:
    """Decodes an image, crops it to its largest centred square and resizes that.

    Arguments:
        stream: The encoded image.
        size: Side of the result in pixels.
        interpolation: Name of one of Pillow's filters.

    Returns:
        float32 ``(3, size, size)`` in [-1, 1].
    """
    image_module = require("PIL.Image", "data")
    with image_module.open(stream) as encoded:
        image = require("PIL.ImageOps", "data").exif_transpose(encoded)
        image = eight_bits(image).convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), image_module.Resampling[interpolation.upper()])
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def eight_bits(image: Any) -> Any:
    """Scales a grey image of 16 bits to 8; Pillow's own conversion would clip it at 255."""
    if not image.mode.startswith("I"):
        return image
    grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
    return require("PIL.Image", "data").fromarray(grey.astype(np.uint8))
