"""Reference sets, with which the images are compared.

    cats-heldout              the first 5,000 held-out cats; their statistics ship
    cats:heldout:2000         a data set NAME[:SPLIT][:COUNT] of tdquant.lab.data without a path
    FOLDER[:COUNT]            images, sorted by path
    FILE.npz                  mean mu and covariance sigma of Inception features
    FILE.safetensors          the same, written by Statistics.to_bytes

Without COUNT a set is cut to its first 10,000 images, with a warning if there are more.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdquant.errors import DataError
from tdquant.files.digests import file_digest
from tdquant.files.looking import is_file, permitted
from tdquant.lab.evaluation.feature_files import reference_features
from tdquant.lab.evaluation.picture_sets import HELDOUT, PictureSet, find_pictures
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.frechet import HELDOUT_NETWORK, heldout_cats
from tdquant.lab.metrics.gaussians import NO_STATISTICS, Statistics

UNKNOWN = 0
"""Number of images of a file that does not say it."""

_OTHER_SIZE = "cats:heldout:5000, which is drawn in any size"
_FORM = "an .npz with mu (D,) and sigma (D, D)"
# What numpy raises over files that are no archive, or one of other things.
_DAMAGED = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A set of images to compare with.

    Attributes:
        name: Its name.
        images: Number of images; None if a file of statistics does not say it.
        preprocessing: What was done to them, in words.
        digest: Digest of its content.
        features: Kind -> features ``(M, D)``, float32; empty if only statistics are known.
        statistics: Kind -> mean and covariance that are known without features.
        source: The images, from which features are computed; None of a file of statistics.
    """

    name: str
    images: int | None
    preprocessing: str
    digest: str
    features: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    source: PictureSet | None = None

    def of(self, kind: str, whole: bool) -> Statistics | Tensor:
        """The set in the form that a metric takes.

        Arguments:
            kind: Kind of features.
            whole: Whether the metric needs the features themselves, not only their statistics.

        Raises:
            DataError: They are not known.
        """
        if not whole and kind in self.statistics:
            return self.statistics[kind]
        if kind in self.features:
            return self.features[kind]
        raise DataError(
            f"the reference set has no {kind} features",
            where=self.name,
            why="a file of statistics has only mean and covariance of pooled features",
            fix="leave those metrics out, --metrics frechet, or give the images",
        )

    def with_features(
        self,
        network: FeatureNetwork,
        kinds: Sequence[str],
        progress: bool = True,
        on_part: Callable[[int, int], None] = lambda done, of: None,
    ) -> Reference:
        """The set with features, from the cache or computed now.

        Arguments:
            network: The feature network.
            kinds: Which of its features.
            progress: Draw a bar.
            on_part: Called with the images done and their number while features are computed.
        """
        if self.source is None:
            return self
        kinds = tuple(sorted(kinds))
        features = reference_features(self.source, network, kinds, progress, on_part)
        # The shipped statistics fit the weights of one network, not just its name.
        shipped = self.name == HELDOUT and network.digest == HELDOUT_NETWORK
        statistics = {"pooled": heldout_cats()} if shipped else {}
        return replace(self, features=features, statistics=statistics)

    def to_dict(self) -> dict[str, Any]:
        """Its description in a record."""
        keys = ("name", "images", "preprocessing", "digest")
        return {key: getattr(self, key) for key in keys}


def open_reference(
    spec: str | Path,
    network: FeatureNetwork,
    kinds: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
    progress: bool = True,
) -> Reference:
    """A reference set with its features, computed if they are not in the cache.

    Arguments:
        spec: A reference set as in the module's docstring.
        network: The feature network.
        kinds: Which of its features.
        size: Height and width of the judged images, which the set must share.
        resize: Side to resize a folder's images to.
        progress: Draw a bar.

    Raises:
        DataError: There is no such set, images differ in size, or a file does not fit.
    """
    found = find_reference(spec, network, size=size, resize=resize)
    return found.with_features(network, kinds, progress)


def find_reference(
    spec: str | Path,
    network: FeatureNetwork,
    *,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
) -> Reference:
    """A reference set without features; its images are checked.

    Arguments and errors are those of ``open_reference``.
    """
    path = Path(spec)
    if path.suffix in (".npz", ".safetensors"):
        found = read_statistics(path, network)
        digest = file_digest(path)[:16]
        return Reference(path.name, found.count or None, "unknown", digest, {}, {"pooled": found})
    side = size[0] if size and size[0] == size[1] else None
    source = find_pictures(str(spec), side, resize)
    if size is not None and source.size != size:
        (h, w), (height, width) = source.size, size
        raise DataError(
            f"reference images of {w}x{h} for images of {width}x{height}",
            where=source.name,
            why="a distance would measure the difference in sharpness",
            fix=f"--resize {min(h, w)}, or {_OTHER_SIZE if spec == HELDOUT else 'another set'}",
        )
    return Reference(source.name, source.count, source.preprocessing, source.digest, source=source)


def read_statistics(path: Path, network: FeatureNetwork) -> Statistics:
    """Mean and covariance of pooled features, as FID implementations exchange them (``mu``,
    ``sigma`` in an ``.npz``) or as ``Statistics.to_bytes`` writes them.

    The file does not name its network; only its number of features is checked.

    Raises:
        DataError: The file cannot be read, holds something else or numbers that are not finite,
            or has another number of features.
    """
    if not is_file(path):
        raise DataError("no such file", where=str(path), fix="check the path")
    if path.suffix == ".npz":
        found = _read_npz(path)
    else:
        with permitted(path):
            found = Statistics.from_bytes(path.read_bytes(), str(path))
    blank = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=network.device)
    width = network(blank).shape[1]
    if len(found.mean) != width:
        raise DataError(
            f"statistics of {len(found.mean)} features for a network with {width}",
            where=str(path),
            why=f"the network is {network.title}",
            fix="the network that computed them, such as --network inception",
        )
    return found


def _read_npz(path: Path) -> Statistics:
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean = torch.from_numpy(np.asarray(stored["mu"], dtype=np.float64))
            covariance = torch.from_numpy(np.asarray(stored["sigma"], dtype=np.float64))
            count = int(stored["count"]) if "count" in stored else UNKNOWN
    except _DAMAGED as error:
        raise DataError(NO_STATISTICS, where=str(path), why=str(error), fix=_FORM) from error
    return Statistics(mean, covariance, count).checked(str(path), _FORM)
