"""Feature networks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tdquant.errors import DataError
from tdquant.lab.metrics.efficientnet import EfficientNetLite0
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.inception import InceptionV3
from tdquant.lab.metrics.shift_tolerant import AlexNet, Vgg16


def _efficientnet(weights: Path | None, download: bool) -> FeatureNetwork:
    if weights is not None:
        raise DataError(
            "weights for a network that brings its own",
            where=EfficientNetLite0.name,
            fix="leave them out",
        )
    return EfficientNetLite0()


NETWORKS: dict[str, Callable[[Path | None, bool], FeatureNetwork]] = {
    EfficientNetLite0.name: _efficientnet,
    InceptionV3.name: InceptionV3,
    AlexNet.name: lambda weights, _download: AlexNet(weights),
    Vgg16.name: lambda weights, _download: Vgg16(weights),
}
"""Name -> a function of a file of weights, or None, and of whether a download is allowed."""


def load_network(
    name: str, weights: str | Path | None = None, *, download: bool = False
) -> FeatureNetwork:
    """A feature network, frozen and in evaluation mode, on the CPU.

    Arguments:
        name: A key of ``NETWORKS``.
        weights: A file of weights, for networks that do not bring their own; None searches the
            caches.
        download: Download published weights if they are not found.

    Raises:
        DataError: The name is unknown, or the weights are missing or damaged.
        MissingDependencyError: An optional package is not installed.
    """
    if name not in NETWORKS:
        raise DataError(
            f"no feature network {name!r}",
            where="load_network",
            fix=f"one of {', '.join(NETWORKS)}",
        )
    return NETWORKS[name](None if weights is None else Path(weights), download)
