"""Data sets of images: item i is a float32 tensor ``(C, size, size)`` in [-1, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from tdquant.errors import DataError, raise_collected


class ImageDataset(Dataset[Tensor], ABC):
    """A data set of square images. Nothing in it is random: item i is always the same.

    Attributes:
        name: Its name, one of ``tdquant.lab.data.DATASETS``.
        labels: Classes, int64 ``(N,)``, or None where there are none.
        flip: Probability with which training mirrors an image, by its own seeded draws; the items
            themselves are never mirrored.
    """

    name: str
    labels: Tensor | None = None
    flip: float = 0.0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor: ...


class StoredImages(ImageDataset):
    """Images in memory, resized on access where another size is asked for.

    Arguments:
        images: uint8 ``(N, C, H, H)``.
        labels: Classes, int64 ``(N,)``, or None.
        name: Name of the data set.
        size: Side in pixels; H if None.

    Raises:
        DataError: The images are not square uint8 images, there is not one label for each, or the
            size is not positive.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None, name: str, size: int | None = None
    ) -> None:
        raise_collected(DataError, _mistakes(images, labels, size), f"the images of {name}")
        self.images, self.labels, self.name = images, labels, name
        self.size = images.shape[-1] if size is None else size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index].float() / 127.5 - 1
        if image.shape[-1] == self.size:
            return image
        # Bicubic weights are negative in places and overshoot at edges.
        return functional.interpolate(
            image[None], (self.size, self.size), mode="bicubic", antialias=True
        )[0].clamp(-1, 1)


def _mistakes(images: Tensor, labels: Tensor | None, size: int | None) -> Iterator[str]:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
        yield f"images of shape {shape} and type {images.dtype}: square uint8 images (N, C, H, H)"
    elif not shape[0]:
        yield "no images"
    elif labels is not None and labels.shape != shape[:1]:
        yield f"{shape[0]} images and labels of shape {tuple(labels.shape)}"
    if size is not None and size < 1:
        yield f"size={size}: at least 1"
