"""Reference sets: what sets of images are compared with.

    cats-heldout              the first 5,000 held-out cats; statistics of them ship
    cats:heldout:2000         a data set of tdquant.data, NAME[:SPLIT][:COUNT], that needs no path
    FOLDER[:COUNT]            images, sorted by path
    FILE.npz                  mean mu and covariance sigma of Inception features
    FILE.safetensors          the same as Statistics.to_bytes writes them

Without COUNT a set is cut to its first 10,000 images, with a warning if there are more.

Features of a set are kept under ``$TDQUANT_CACHE``, by what the set is, how it was prepared and
whose features they are. What is there is checked against all of it, and against its own digest,
before it is used.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.caching import cache_folder
from tdquant.data import DATASETS
from tdquant.data.registry import make_dataset
from tdquant.diffusion.pictures import to_uint8
from tdquant.digests import file_digest
from tdquant.errors import DataError
from tdquant.evaluate.reading import (
    check_pictures,
    content,
    picture_files,
    preparation,
    read_pictures,
)
from tdquant.evaluate.statistics import read_statistics
from tdquant.metrics.features import FeatureNetwork
from tdquant.metrics.frechet import CATS_HELDOUT, HELDOUT_NETWORK, Statistics, heldout_cats
from tdquant.progress import track
from tdquant.writing import replacing, write_tensors

HELDOUT = "cats-heldout"
KEPT = 10_000
"""Images of a set that are taken unless more are asked for."""

VERSION = 1
_PART = 50
_OTHER_SIZE = "cats:heldout:5000, which is drawn in any size"
Seen = Callable[[int, int], None]


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
class _Source:
    """Images before a network saw them; ``place`` tells sets of one name apart."""

    name: str
    place: str
    count: int
    size: tuple[int, int]
    preprocessing: str
    digest: str
    part: Callable[[int, int], Tensor]


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
    place, count = _counted_folder(str(spec))
    source = _dataset(str(spec), side) if place is None else _folder(place, count, resize)
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
        features = _cached(source, network, tuple(sorted(kinds)), progress, seen)
        # Those that ship are of one network; of another, be it of the same name, they say nothing.
        shipped = source.name == HELDOUT and network.digest == HELDOUT_NETWORK
        statistics = {"pooled": heldout_cats()} if shipped else {}
        return replace(bare, features=features, statistics=statistics)

    return ReferenceSet(bare.to_dict(), measured)


def _counted_folder(spec: str) -> tuple[Path | None, int | None]:
    """``FOLDER[:COUNT]``, or no folder."""
    before, _, count = spec.rpartition(":")
    if Path(spec).is_dir():
        return Path(spec), None
    if count.isdigit() and before and Path(before).is_dir():
        return Path(before), int(count)
    return None, None


def _warn_of_the_rest(spec: str, there: int) -> None:
    if there > KEPT:
        warnings.warn(
            f"reference set {spec}: the first {KEPT} of {there} images are taken; {spec}:{there} "
            "takes all",
            stacklevel=4,
        )


def _folder(path: Path, count: int | None, resize: int | None) -> _Source:
    files = picture_files(path)
    if count is not None and not 0 < count <= len(files):
        raise DataError(f"{len(files)} images, {count} asked for", where=str(path))
    if count is None:
        _warn_of_the_rest(str(path), len(files))
    files = files[: count or KEPT]
    size = check_pictures(files, resize)
    place = str(path.resolve())
    return _Source(
        path.resolve().name,
        place if count is None else f"{place}:{count}",
        len(files),
        size,
        preparation(size, resize),
        content(files),
        lambda first, end: read_pictures(files[first:end], resize),
    )


def _dataset(spec: str, side: int | None) -> _Source:
    """``NAME[:SPLIT][:COUNT]`` in the size of the images that are judged."""
    name, *rest = (f"cats:heldout:{CATS_HELDOUT}" if spec == HELDOUT else spec).split(":")
    if name not in _named_sets() or len(rest) > 2:
        raise DataError(
            f"no reference set {spec!r}",
            why=f"a name does not tell where {name} lies" if name in DATASETS else "",
            fix=f"{HELDOUT}, NAME:SPLIT:COUNT with a NAME of {', '.join(_named_sets())}, a folder "
            "of images as FOLDER or FOLDER:COUNT, or statistics in .npz or .safetensors",
        )
    counts = [word for word in rest if word.isdigit()]
    splits = [word for word in rest if word not in counts]
    if len(counts) > 1 or len(splits) > 1 or counts == ["0"]:
        raise DataError(
            f"reference set {spec!r}", fix="NAME:SPLIT:COUNT, such as cats:heldout:500"
        )
    known = inspect.signature(DATASETS[name]).parameters
    if splits and "split" not in known:
        raise DataError(f"{name} has no splits", where=spec, fix=f"{name}:COUNT")
    count = int(counts[0]) if counts else KEPT
    options: dict[str, Any] = {"split": splits[0]} if splits else {}
    if counts and "count" in known:
        options["count"] = count
    if spec != HELDOUT and side is not None and "size" in known:
        options["size"] = side
    found = make_dataset(name, where=spec, **options)
    if not counts:
        _warn_of_the_rest(spec, len(found))
    if counts and len(found) < count:
        raise DataError(f"{len(found)} images, {count} asked for", where=spec)
    count = min(count, len(found))
    size = tuple(found[0].shape[-2:])

    def part(first: int, end: int) -> Tensor:
        images = to_uint8(torch.stack([found[i] for i in range(first, end)]))
        return images.expand(-1, 3, -1, -1)

    # Evenly spread items stand for all: reading a large set would take as long as its features.
    chosen = [found[round(i * (count - 1) / 31)] for i in range(32)]
    digest = hashlib.sha256(f"{count}|".encode() + to_uint8(torch.stack(chosen)).numpy().tobytes())
    return _Source(
        spec if spec == HELDOUT else ":".join([name, *splits, str(count)]),
        name,
        count,
        (int(size[0]), int(size[1])),
        preparation((int(size[0]), int(size[1])), None),
        digest.hexdigest()[:16],
        part,
    )


def _named_sets() -> list[str]:
    """The data sets that are told by their name alone."""
    empty = inspect.Parameter.empty
    return [
        name
        for name, make in DATASETS.items()
        if all(p.default is not empty for p in inspect.signature(make).parameters.values())
    ]


def _cached(
    source: _Source, network: FeatureNetwork, kinds: tuple[str, ...], progress: bool, seen: Seen
) -> dict[str, Tensor]:
    facts = {
        "version": VERSION,
        "set": source.name,
        "images": source.count,
        "preprocessing": source.preprocessing,
        "digest": source.digest,
        "network": network.digest,
        "kinds": list(kinds),
    }
    # The key is what was asked for. Whether the set is still the same, the facts inside say.
    asked = [source.name, source.place, source.preprocessing, network.digest, *kinds]
    key = hashlib.sha256("|".join(asked).encode()).hexdigest()[:16]
    file = cache_folder() / "references" / f"{key}.safetensors"
    if file.exists():
        try:
            return _read(file, facts)
        except DataError as error:
            warnings.warn(f"{error.what} [{file}]; it is computed again", stacklevel=3)
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    seen(0, source.count)
    starts = range(0, source.count, _PART)
    for first in track(starts, f"features of {source.name}", show=progress):
        images = source.part(first, min(first + _PART, source.count)).to(network.device)
        for kind, found in network.extract(images, kinds).items():
            parts[kind].append(found.float().cpu())
        seen(min(first + _PART, source.count), source.count)
    tensors = {kind: torch.cat(rows) for kind, rows in parts.items() if kind in kinds}
    with replacing(file) as fresh:
        sealed = {"facts": json.dumps(facts), "tensors": _digest(tensors)}
        write_tensors(tensors, fresh, metadata=sealed)
    return tensors


def _read(file: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a cache file, if they are of what the facts say and undamaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            sealed = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        there = json.loads(sealed["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError("the features in the cache are damaged") from error
    if there != facts:
        odd = [k for k in facts if there.get(k) != facts[k]]
        told = ", ".join(f"{k} {there.get(k)} in the place of {facts[k]}" for k in odd)
        raise DataError(f"the features in the cache are of something else: {told}")
    if _digest(tensors) != sealed.get("tensors"):
        raise DataError("the features in the cache are damaged")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
