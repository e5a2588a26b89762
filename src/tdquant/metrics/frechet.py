r"""Frechet distance between image sets, on EfficientNet-Lite0 features.

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

The arithmetic is torchmetrics'. Statistics of a reference set are computed once and kept: those of
the held-out cats ship with the package, others go to a cache folder, by what they were computed
from.

References:
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium, 2017 (https://arxiv.org/abs/1706.08500).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tdquant.data.cats import Cats
from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.metrics.features import EfficientNetLite0
from tdquant.optional import require
from tdquant.progress import track
from tdquant.writing import replacing

CATS_HELDOUT = 5_000


@dataclass(frozen=True)
class Statistics:
    """Mean ``(D,)``, covariance ``(D, D)`` and number of images of a set's features, float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    def to_bytes(self) -> bytes:
        """float32 safetensors with half of the symmetric covariance."""
        lower = torch.tril_indices(*self.covariance.shape)
        return save(
            {
                "mean": self.mean.float(),
                "covariance": self.covariance[lower[0], lower[1]].float(),
                "count": torch.tensor(self.count),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Statistics:
        """Reads what ``to_bytes`` wrote.

        Raises:
            DataError: The bytes are something else.
        """
        try:
            tensors = load(data)
            mean = tensors["mean"].double()
            covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
            lower = torch.tril_indices(len(mean), len(mean))
            covariance[lower[0], lower[1]] = tensors["covariance"].double()
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise DataError(
                "unreadable feature statistics", why=str(error), fix="delete the file"
            ) from error
        return cls(mean, covariance + covariance.tril(-1).T, int(tensors["count"]))


class FrechetDistance:
    """Frechet EfficientNet-Lite0 distance to one reference set; the network is loaded once.

    Arguments:
        reference: Statistics of the reference set; held-out cats if None.
        features: Network from uint8 images to features; EfficientNet-Lite0 if None.
        batch: Images at a time.

    Raises:
        MissingDependencyError: The extra ``metrics`` is not installed.
    """

    def __init__(
        self,
        reference: Statistics | None = None,
        features: nn.Module | None = None,
        batch: int = 32,
    ) -> None:
        self.features = features or EfficientNetLite0()
        self.reference = reference or heldout_cats()
        self.batch = batch

    def __call__(self, images: Tensor, progress: bool = False) -> float:
        """The distance of images ``(N, 3, H, W)``, uint8 or in [-1, 1], to the reference set.

        Raises:
            DataError: Fewer than two images.
        """
        metric = self._metric()
        ref = self.reference
        metric.real_features_sum = ref.mean * ref.count
        outer = torch.outer(ref.mean, ref.mean)
        metric.real_features_cov_sum = ref.covariance * (ref.count - 1) + ref.count * outer
        metric.real_features_num_samples = torch.tensor(ref.count)
        self._update(metric, images, False, progress)
        return float(metric.compute())

    def statistics(self, images: Tensor, progress: bool = False) -> Statistics:
        """Statistics of images ``(N, 3, H, W)``, uint8 or in [-1, 1]."""
        metric = self._metric()
        self._update(metric, images, True, progress)
        count = int(metric.real_features_num_samples)
        mean = metric.real_features_sum / count
        covariance = (metric.real_features_cov_sum - count * torch.outer(mean, mean)) / (count - 1)
        return Statistics(mean, covariance, count)

    def _metric(self) -> Any:
        metric = require("torchmetrics.image.fid", "metrics").FrechetInceptionDistance
        return metric(feature=self.features, normalize=False)

    def _update(self, metric: Any, images: Tensor, real: bool, progress: bool) -> None:
        if len(images) < 2:
            raise DataError(
                f"{len(images)} images",
                where="FrechetDistance",
                fix="at least 2; hundreds to mean much",
            )
        batches = to_uint8(images).split(self.batch)
        for part in track(batches, "image features", len(batches), progress):
            metric.update(part, real=real)


def heldout_cats() -> Statistics:
    """Statistics of the first 5,000 held-out cats, which ship with the package."""
    file = (
        resources.files("tdquant.metrics")
        / "reference"
        / f"cats-heldout-{CATS_HELDOUT}.safetensors"
    )
    return Statistics.from_bytes(file.read_bytes())


def cached_statistics(
    name: str, images: Callable[[], Tensor], distance: FrechetDistance
) -> Statistics:
    """Statistics kept under ``$TDQUANT_CACHE`` (``~/.cache/tdquant``), computed the first time.

    Arguments:
        name: What tells this set from all others: data set, split, count, size.
        images: Gives the images when they are needed.
        distance: Whose features to use.
    """
    folder = Path(os.environ.get("TDQUANT_CACHE", Path.home() / ".cache" / "tdquant"))
    network = type(distance.features).__name__
    key = hashlib.sha256(f"{name}|{network}|v1".encode()).hexdigest()[:16]
    file = folder / f"{network}-{key}.safetensors"
    if file.exists():
        try:
            return Statistics.from_bytes(file.read_bytes())
        except DataError:
            file.unlink()
    found = distance.statistics(images(), progress=True)
    with replacing(file) as fresh:
        fresh.write_bytes(found.to_bytes())
    return found


def compute_heldout_cats() -> Statistics:
    """Computes what ``heldout_cats`` reads: the recipe of the shipped file."""
    return FrechetDistance(reference=Statistics(torch.zeros(1), torch.zeros(1, 1), 1)).statistics(
        Cats("heldout", CATS_HELDOUT).images, progress=True
    )
