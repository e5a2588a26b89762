"""Frechet distance of images to a reference set; ``gaussians`` has the formula.

Statistics of the held-out cats ship with the package, so that their distance needs no images.
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

CATS_HELDOUT = 5_000
HELDOUT_NETWORK = "78fe5c688abae17a"
"""Digest of the network that computed the shipped statistics."""


class FrechetDistance:
    """Frechet EfficientNet-Lite0 distance to one reference set; the network is loaded once.

    Arguments:
        reference: Statistics of the reference set; None takes those of the held-out cats that
            ship, which fit one network.
        features: Network from uint8 images to features; None takes EfficientNet-Lite0.
        batch: Images at a time.

    Raises:
        DataError: There is no reference, and the shipped one is of another network.
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
                fix="statistics of a set by the same network",
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
    folder = resources.files("tdquant.lab.metrics") / "reference"
    file = folder / f"cats-heldout-{CATS_HELDOUT}.safetensors"
    return Statistics.from_bytes(file.read_bytes())


def compute_heldout_cats() -> Statistics:
    """Computes the shipped statistics, with the network of digest ``HELDOUT_NETWORK``."""
    nothing = torch.zeros(1, 1, dtype=torch.float32)
    distance = FrechetDistance(reference=Statistics(nothing[0], nothing, 1))
    return distance.statistics(Cats("heldout", CATS_HELDOUT).images, progress=True)
