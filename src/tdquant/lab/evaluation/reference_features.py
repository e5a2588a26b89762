"""Features of reference sets, kept under ``$TDQUANT_CACHE``.

A file is named by what was asked for: the set, how it was prepared, and whose features. What is
there is checked against all that the set is now, and against its own digest, before it is used.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import DataError
from tdquant.files.caching import cache_folder
from tdquant.files.writing import replacing, write_tensors
from tdquant.lab.evaluation.picture_sets import PictureSet
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.support.progress import track

VERSION = 1
_PART = 50
Seen = Callable[[int, int], None]


def reference_features(
    source: PictureSet,
    network: FeatureNetwork,
    kinds: tuple[str, ...],
    progress: bool,
    seen: Seen,
) -> dict[str, Tensor]:
    """Features ``(M, D)`` of a set by kind, from the cache or computed now.

    Arguments:
        source: The set.
        network: Whose features.
        kinds: Which of them, sorted.
        progress: Draw a bar.
        seen: Called with the images done and their number while they are computed.
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
