"""Features of reference sets, kept under ``$TDQUANT_CACHE``.

A file is named by the request: the set, how it was prepared, and the network. Its content is
checked against the set as it is now, and against its own digest, before it is used.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import DataError
from tdquant.files.caching import cache_folder
from tdquant.files.writing import replacing, write_tensors
from tdquant.lab.evaluation.feature_shards import PART, compute_features
from tdquant.lab.evaluation.picture_sets import PictureSet
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.support.progress import Bar

VERSION = 1


def reference_features(
    source: PictureSet,
    network: FeatureNetwork,
    kinds: tuple[str, ...],
    progress: bool,
    on_part: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """Features ``(M, D)`` of a set by kind, from the cache or computed now.

    Arguments:
        source: The set.
        network: The feature network.
        kinds: Which of its features, sorted.
        progress: Draw a bar.
        on_part: Called with the images done and their number while features are computed.
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
    if file.exists():
        try:
            return _read(file, facts)
        except DataError as error:
            warnings.warn(f"{error.what} [{file}]; it is computed again", stacklevel=3)
    on_part(0, source.count)
    bar = Bar(f"features of {source.name}", -(-source.count // PART), show=progress)

    def advance(done: int) -> None:
        bar.advance()
        on_part(done, source.count)

    tensors = compute_features(source.part, source.count, network, kinds, advance)
    bar.close()
    with replacing(file) as fresh:
        sealed = {"facts": json.dumps(facts), "tensors": _digest(tensors)}
        write_tensors(tensors, fresh, metadata=sealed)
    return tensors


def _read(file: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a cache file, if they match the facts and are undamaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            sealed = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        there = json.loads(sealed["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError("the features in the cache are damaged") from error
    if there != facts:
        other = [k for k in facts if there.get(k) != facts[k]]
        listed = ", ".join(f"{k} {there.get(k)} in the place of {facts[k]}" for k in other)
        raise DataError(f"the features in the cache are of something else: {listed}")
    if _digest(tensors) != sealed.get("tensors"):
        raise DataError("the features in the cache are damaged")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
