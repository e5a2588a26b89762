"""Features of images, kept in files that say what they are of.

    RUN/features/<network>-00003.safetensors    images 1500 .. 1999, a tensor (N, D) a kind
    $TDQUANT_CACHE/references/<digest>.safetensors

A file of other images, of another network, or a damaged one is computed again. Process r of W
computes the shards k of a run with k mod W = r.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import DataError, StorageError
from tdquant.files.caching import cache_folder
from tdquant.files.looking import exists
from tdquant.files.writing import replacing, write_tensors
from tdquant.lab.evaluation.image_files import read_pictures, stat_digest
from tdquant.lab.evaluation.picture_sets import PictureSet
from tdquant.lab.evaluation.progress import wait_for
from tdquant.lab.metrics.features import FeatureNetwork, features_of_batches
from tdquant.support.progress import Bar

SHARD = 500
PART = 50
"""Images that are read at a time."""
VERSION = 1
_DAMAGED = "the features in the cache are damaged"


def _parts(
    read: Callable[[int, int], Tensor], count: int, on_part: Callable[[int], None]
) -> Iterator[Tensor]:
    """The images ``read(first, end)``; calls ``on_part`` after the features of each part."""
    for first in range(0, count, PART):
        end = min(first + PART, count)
        yield read(first, end)
        on_part(end)


def _write(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    sealed = {"facts": json.dumps(facts), "tensors": _digest(tensors)}
    with replacing(file) as fresh:
        write_tensors(tensors, fresh, metadata=sealed)


def _read(
    file: Path, kinds: Sequence[str], load: bool = True
) -> tuple[Any, str | None, dict[str, Tensor]]:
    """The facts of a file, the digest of its tensors, and the tensors if they are loaded.

    Raises:
        DataError: It is missing or damaged, or lacks a kind.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            sealed = opened.metadata()
            slices = {kind: opened.get_slice(kind) for kind in kinds}
            tensors = {kind: found[:] for kind, found in slices.items() if load}
        return json.loads(sealed["facts"]), sealed.get("tensors"), tensors
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(_DAMAGED) from error


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureShards:
    """The features of a run's images.

    Arguments:
        folder: Where the shards lie.
        files: The images, in order.
        network: A feature network.
        kinds: Which of its features.
        resize: Side to resize to, or None.
    """

    folder: Path
    files: Sequence[Path]
    network: FeatureNetwork
    kinds: tuple[str, ...]
    resize: int | None = None

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.files) // SHARD)

    def compute(
        self, rank: int, world: int, progress: bool, on_part: Callable[[int], None]
    ) -> None:
        """Computes the missing shards of process ``rank`` of ``world``; calls ``on_part`` with the
        number of images that it has done.
        """
        own = range(rank, self.count, world)
        total = sum(len(self._files(k)) for k in own)
        bar, done = Bar(f"{self.network.title}: features", -(-total // PART), show=progress), 0
        for k in own:

            def advance(images: int, before: int = done) -> None:
                bar.advance()
                on_part(before + images)

            self._compute_shard(k, advance)
            done += len(self._files(k))
            on_part(done)
        bar.close()

    def _compute_shard(self, k: int, on_part: Callable[[int], None]) -> None:
        files = self._files(k)
        wait_for(lambda: sum(not exists(file) for file in files), "images", self.folder.parent)
        if self._is_whole(k):
            return
        facts = self._facts(k)  # of the files as they are before they are read
        parts = _parts(
            lambda i, end: read_pictures(files[i:end], self.resize), len(files), on_part
        )
        tensors = features_of_batches(parts, self.network, self.kinds)
        _write(self._path(k), tensors, facts)

    def count_missing(self) -> int:
        """Number of shards that are still missing."""
        return sum(not self._is_whole(k) for k in range(self.count))

    def gather(self) -> dict[str, Tensor]:
        """All features, kind -> float32 ``(N, D)``."""
        shards = [_read(self._path(k), self.kinds)[2] for k in range(self.count)]
        return {kind: torch.cat([shard[kind] for shard in shards]) for kind in self.kinds}

    def _files(self, k: int) -> Sequence[Path]:
        return self.files[k * SHARD : (k + 1) * SHARD]

    def _path(self, k: int) -> Path:
        return self.folder / f"{self.network.name}-{k:05d}.safetensors"

    def _facts(self, k: int) -> dict[str, Any]:
        return {
            "network": self.network.digest,
            "first": k * SHARD,
            "count": len(self._files(k)),
            "files": stat_digest(self._files(k)),
            "resize": self.resize,
        }

    def _is_whole(self, k: int) -> bool:
        try:
            return bool(_read(self._path(k), self.kinds, load=False)[0] == self._facts(k))
        except DataError:
            return False


def reference_features(
    source: PictureSet,
    network: FeatureNetwork,
    kinds: tuple[str, ...],
    progress: bool,
    on_part: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """Features ``(M, D)`` of a reference set by kind, from the cache or computed now; calls
    ``on_part`` with the images done and their number while they are computed.
    """
    facts = {
        "version": VERSION,
        "set": source.name,
        "images": source.count,
        "preprocessing": source.preprocessing,
        "digest": source.digest,
        "network": network.digest,
        "kinds": list(kinds),
    }
    asked = [source.name, source.place, source.preprocessing, network.digest, *kinds]
    key = hashlib.sha256("|".join(asked).encode()).hexdigest()[:16]
    file = cache_folder() / "references" / f"{key}.safetensors"
    if exists(file):
        try:
            return _cached(file, facts)
        except DataError as error:
            warnings.warn(f"{error.what} [{file}]; it is computed again", stacklevel=3)
    on_part(0, source.count)
    bar = Bar(f"features of {source.name}", -(-source.count // PART), show=progress)

    def advance(done: int) -> None:
        bar.advance()
        on_part(done, source.count)

    parts = _parts(source.part, source.count, advance)
    tensors = features_of_batches(parts, network, kinds)
    bar.close()
    try:
        _write(file, tensors, facts)
    except (StorageError, OSError) as error:
        warnings.warn(
            f"cannot be written: {error}\n  the next run computes these features again",
            stacklevel=3,
        )
    return tensors


def _cached(file: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a cache file, if they match the facts and are undamaged."""
    there, digest, tensors = _read(file, facts["kinds"])
    if there != facts:
        other = [k for k in facts if there.get(k) != facts[k]]
        listed = ", ".join(f"{k} {there.get(k)} in the place of {facts[k]}" for k in other)
        raise DataError(f"the features in the cache are of something else: {listed}")
    if _digest(tensors) != digest:
        raise DataError(_DAMAGED)
    return tensors
