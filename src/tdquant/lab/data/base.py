"""Data sets of images: item i is a float32 tensor ``(C, size, size)`` in [-1, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from tdquant.errors import DataError


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
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise DataError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}",
                where=name,
                fix="square uint8 images (N, C, H, H)",
            )
        if not len(images):
            raise DataError("no images", where=name)
        if labels is not None and labels.shape != (len(images),):
            raise DataError(
                f"{len(images)} images and labels of shape {tuple(labels.shape)}", where=name
            )
        if size is not None and size < 1:
            raise DataError(f"size={size}", where=name, fix="at least 1")
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
