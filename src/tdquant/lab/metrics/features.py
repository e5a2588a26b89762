"""Feature networks: images to the numbers that metrics of image sets are computed from.

A network gives up to three kinds of features, all from one pass:

- ``pooled``: the last map averaged over space; Frechet and kernel distances, precision, recall;
- ``logits``: class scores; the Inception Score;
- ``spatial``: a few channels of an intermediate map, not averaged; the spatial Frechet distance.

Distances by two networks are not comparable, nor are those by one network with other weights. So a
network has a name, a title for tables, and the digest of its weights.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.files.digests import hash_tensors
from tdquant.support.hooks import hooked
from tdquant.support.progress import track

KINDS = ("pooled", "logits", "spatial")


class FeatureNetwork(nn.Module, ABC):
    """Frozen ``uint8 images (N, 1 or 3, H, W) -> features (N, D)``, float32.

    Attributes:
        name: Its key in ``NETWORKS``.
        title: Its name in tables.
        kinds: The kinds of features that it gives.
        standard: Whether its metrics have the common names: FID, KID, Inception Score. True only
            for the published Inception network with the published weights.
        chunk: Images at a time on a CPU.
    """

    name: str
    title: str
    kinds: tuple[str, ...] = KINDS
    standard = False
    chunk = 4

    @abstractmethod
    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Features ``(N, D_kind)`` of every kind of uint8 RGB images, from one pass."""

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of names, types, shapes and bytes of all weights."""
        return hash_tensors(self.state_dict()).hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where features come out."""
        return next(self.parameters()).device

    @torch.no_grad()
    def extract(self, images: Tensor, kinds: Sequence[str] = ("pooled",)) -> dict[str, Tensor]:
        """Features of several kinds from one pass.

        Arguments:
            images: uint8 ``(N, 3, H, W)`` or grey ``(N, 1, H, W)``, of any size.
            kinds: Which features; a subset of ``kinds``.

        Returns:
            Kind -> features ``(N, D_kind)``, float32, on the network's device.

        Raises:
            DataError: The images are of another form, or a kind is unknown.
        """
        if unknown := [kind for kind in kinds if kind not in self.kinds]:
            raise DataError(
                f"no features {', '.join(map(repr, unknown))}",
                where=self.title,
                fix=f"among {', '.join(self.kinds)}",
            )
        images = rgb(images, self.title)
        size = self.chunk if self.device.type == "cpu" else len(images)
        # In TF32, distances of sets that hardly differ would depend on the GPU.
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            parts = [self.run(p.to(self.device)) for p in images.split(max(size, 1))]
        return {kind: torch.cat([part[kind].float() for part in parts]) for kind in kinds}

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features ``(N, D)``."""
        return self.extract(images, ("pooled",))["pooled"]


@contextlib.contextmanager
def spatial_slice(layer: nn.Module, channels: int) -> Iterator[list[Tensor]]:
    """A list to which each call of ``layer`` appends its first channels, ``(N, channels H W)``."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output[:, :channels].flatten(1))

    with hooked([layer.register_forward_hook(keep)]):
        yield found


def rgb(images: Tensor, where: str) -> Tensor:
    """Colour images as they are and grey ones with their channel repeated, ``(N, 3, H, W)``.

    Raises:
        DataError: The images are of another type or shape, or there are none.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"images of type {images.dtype} and shape {tuple(images.shape)}",
            where=where,
            why="feature networks take pixels as files hold them: uint8 RGB or grey",
            fix="to_uint8 of images in [-1, 1], of shape (N, 3, H, W) or (N, 1, H, W)",
        )
    if not images.numel():
        raise DataError(f"no pixels in images of shape {tuple(images.shape)}", where=where)
    return images.expand(-1, 3, -1, -1)


def features_of(
    images: Tensor,
    network: FeatureNetwork,
    kinds: Sequence[str] = ("pooled",),
    batch: int = 32,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Features of many images, batch by batch, on the CPU.

    Arguments:
        images: ``(N, 1 or 3, H, W)``, uint8 or in [-1, 1].
        network: The network.
        kinds: Which features.
        batch: Images at a time.
        progress: Draw a bar.

    Returns:
        Kind -> features ``(N, D_kind)``, float32.

    Raises:
        DataError: The images are of another form, or a kind is unknown.
    """
    if not len(images):
        raise DataError("no images", where=network.title)
    batches = images.split(batch)
    tracked = track(batches, "image features", len(batches), progress)
    return features_of_batches(map(to_uint8, tracked), network, kinds)


def features_of_batches(
    batches: Iterable[Tensor], network: FeatureNetwork, kinds: Sequence[str]
) -> dict[str, Tensor]:
    """Features ``(N, D_kind)`` by kind of batches of uint8 images, on the CPU."""
    parts = [
        {kind: value.cpu() for kind, value in network.extract(batch, kinds).items()}
        for batch in batches
    ]
    return {kind: torch.cat([part[kind] for part in parts]) for kind in kinds}
