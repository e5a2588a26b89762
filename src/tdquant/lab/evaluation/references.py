"""Reference sets: what sets of images are compared with.

    cats-heldout              the first 5,000 held-out cats; statistics of them ship
    cats:heldout:2000         a data set NAME[:SPLIT][:COUNT] of tdquant.lab.data without a path
    FOLDER[:COUNT]            images, sorted by path
    FILE.npz                  mean mu and covariance sigma of Inception features
    FILE.safetensors          the same as Statistics.to_bytes writes them

Without COUNT a set is cut to its first 10,000 images, with a warning if there are more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tdquant.errors import DataError
from tdquant.files.digests import file_digest
from tdquant.lab.evaluation.picture_sets import HELDOUT, find_pictures
from tdquant.lab.evaluation.reference_features import Seen, reference_features
from tdquant.lab.evaluation.statistics import read_statistics
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.frechet import HELDOUT_NETWORK, Statistics, heldout_cats

_OTHER_SIZE = "cats:heldout:5000, which is drawn in any size"


@dataclass(frozen=True)
class Reference:
    """A set of images to compare with.

    Attributes:
        name: What it is called.
        images: Number of images; None where a file of statistics does not tell.
        preprocessing: What was done to them, in words.
        digest: Digest of what the set is.
        features: Kind -> features ``(M, D)``, float32; empty if only statistics are known.
        statistics: Kind -> mean and covariance, where they are known without features.
    """

    name: str
    images: int | None
    preprocessing: str
    digest: str
    features: dict[str, Tensor]
    statistics: dict[str, Statistics] = field(default_factory=dict)

    def of(self, kind: str, whole: bool) -> Statistics | Tensor:
        """The set as a metric takes it.

        Arguments:
            kind: Kind of features.
            whole: Whether the metric needs the features and not their statistics alone.

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
            why="a file of statistics has mean and covariance of pooled features alone",
            fix="leave those metrics out, --metrics frechet, or give the images",
        )

    def to_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "name": self.name,
            "images": self.images,
            "preprocessing": self.preprocessing,
            "digest": self.digest,
        }


@dataclass(frozen=True)
class ReferenceSet:
    """A reference set that was found, and whose features may still have to be computed.

    Attributes:
        described: What a record says of it.
        open: ``(kinds, progress, seen) -> Reference``, with these kinds of features; draws a bar
            if ``progress``, and calls ``seen`` with the images done and their number.
    """

    described: dict[str, Any]
    open: Callable[[Sequence[str], bool, Seen], Reference]


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
        spec: What the module says.
        network: Whose features.
        kinds: Which of them.
        size: Height and width of the images that are to be judged: the set must have the same.
        resize: Side to resize a folder's images to.
        progress: Draw a bar.

    Raises:
        DataError: No such set, images that differ in size, or a file that does not fit.
    """
    found = find_reference(spec, network, size=size, resize=resize)
    return found.open(kinds, progress, lambda done, of: None)


def find_reference(
    spec: str | Path,
    network: FeatureNetwork,
    *,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
) -> ReferenceSet:
    """A reference set without its features: it reads the images, and computes nothing of them.

    The arguments, and what is raised, are those of ``open_reference``.
    """
    path = Path(spec)
    if path.suffix in (".npz", ".safetensors"):
        found = read_statistics(path, network)
        digest = file_digest(path)[:16]
        told = Reference(path.name, found.count or None, "unknown", digest, {}, {"pooled": found})
        return ReferenceSet(told.to_dict(), lambda kinds, progress, seen: told)
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
    bare = Reference(source.name, source.count, source.preprocessing, source.digest, {})

    def measured(kinds: Sequence[str], progress: bool, seen: Seen) -> Reference:
        features = reference_features(source, network, tuple(sorted(kinds)), progress, seen)
        # Those that ship are of one network; of another, be it of the same name, they say nothing.
        shipped = source.name == HELDOUT and network.digest == HELDOUT_NETWORK
        statistics = {"pooled": heldout_cats()} if shipped else {}
        return replace(bare, features=features, statistics=statistics)

    return ReferenceSet(bare.to_dict(), measured)
