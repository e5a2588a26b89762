"""Frechet distance of images to a reference set; ``gaussians`` has the formula.

Statistics of a reference set are computed once and kept: those of the held-out cats ship with the
package, others go to a cache folder, by what they were computed from.
"""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.lab.data.cats import Cats
from tdquant.lab.metrics.efficientnet import EfficientNetLite0
from tdquant.lab.metrics.gaussians import Statistics, frechet_distance
from tdquant.support.progress import track

__all__ = [
    "CATS_HELDOUT",
    "HELDOUT_NETWORK",
    "FrechetDistance",
    "Statistics",
    "compute_heldout_cats",
    "heldout_cats",
]

CATS_HELDOUT = 5_000
HELDOUT_NETWORK = "78fe5c688abae17a"
"""Digest of the network whose features the shipped statistics are of."""


class FrechetDistance:
    """Frechet EfficientNet-Lite0 distance to one reference set; the network is loaded once.

    Arguments:
        reference: Statistics of the reference set; if None, those of the held-out cats that ship,
            which are of one network.
        features: Network from uint8 images to features; EfficientNet-Lite0 if None.
        batch: Images at a time.

    Raises:
        DataError: No reference, and features that the shipped one is not of.
        MissingDependencyError: The extra ``metrics`` is not installed.
    """

    def __init__(
        self,
        reference: Statistics | None = None,
        features: nn.Module | None = None,
        batch: int = 32,
    ) -> None:
        self.features = features or EfficientNetLite0()
        if reference is None and getattr(self.features, "digest", None) != HELDOUT_NETWORK:
            raise DataError(
                "no reference set for this network",
                where=type(self.features).__name__,
                why="the shipped statistics are of other weights",
                fix="statistics of a set that the same network saw",
            )
        self.reference = reference or heldout_cats()
        self.batch = batch

    def __call__(self, images: Tensor, progress: bool = False) -> float:
        """The distance of images ``(N, 3, H, W)``, uint8 or in [-1, 1], to the reference set.

        Raises:
            DataError: Fewer than two images.
        """
        return frechet_distance(self.statistics(images, progress), self.reference)

    @torch.no_grad()
    def statistics(self, images: Tensor, progress: bool = False) -> Statistics:
        """Statistics of images ``(N, 3, H, W)``, uint8 or in [-1, 1].

        Raises:
            DataError: Fewer than two images.
        """
        batches = to_uint8(images).split(self.batch)
        parts = [
            self.features(p) for p in track(batches, "image features", len(batches), progress)
        ]
        return Statistics.of(torch.cat(parts))


def heldout_cats() -> Statistics:
    """Statistics of the first 5,000 held-out cats, which ship with the package."""
    file = (
        resources.files("tdquant.lab.metrics")
        / "reference"
        / f"cats-heldout-{CATS_HELDOUT}.safetensors"
    )
    return Statistics.from_bytes(file.read_bytes())


def compute_heldout_cats() -> Statistics:
    """Computes what ``heldout_cats`` reads, with the network of digest ``HELDOUT_NETWORK``: the
    recipe of the shipped file.
    """
    return FrechetDistance(reference=Statistics(torch.zeros(1), torch.zeros(1, 1), 1)).statistics(
        Cats("heldout", CATS_HELDOUT).images, progress=True
    )
