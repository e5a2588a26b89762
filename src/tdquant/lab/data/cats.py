"""Cats: small RGB images composed from layered art, with seeded disjoint splits.

The art is robohash's ``set4``, drawn by David Revoy (CC-BY-4.0), five layers of RGBA images: 15
bodies, 10 furs, 15 pairs of eyes, 10 mouths and 16 accessories, 360,000 combinations. It is
combinatorial art and not a photographic benchmark. A layer with premultiplied colour ``c`` and
opacity ``a`` goes over what is below it:

    out = c + (1 - a) * out

Combination indices are shuffled by a fixed seed. The first ``POOL`` belong to the held-out split,
the rest to the training split. Combinations that look the same at the chosen size are kept once,
and a training image that equals any image of the held-out pool is dropped, so that the splits
share no picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tdquant.errors import DataError
from tdquant.lab.data.base import StoredImages
from tdquant.support.optional import require

ATTRIBUTION = "Cat art: David Revoy, CC-BY-4.0, through robohash set4."
SPLITS = ("train", "heldout")
POOL = 20_000
_SPLIT_SEED = 23
_CHUNK = 2_000


@lru_cache(maxsize=4)
def _layers(size: int) -> tuple[np.ndarray, ...]:
    """Premultiplied RGBA layers, bottom first, each ``(variants, size, size, 4)`` in [0, 1]."""
    image_module = require("PIL.Image", "cats")
    package = Path(str(require("robohash", "cats").__file__)).parent
    folders = sorted((package / "sets" / "set4").iterdir(), key=lambda p: p.name.split("#")[1])
    if not folders:
        raise DataError(
            "robohash carries no set4", where=str(package), fix="pip install robohash==2.0"
        )
    layers = []
    for folder in folders:
        variants = []
        for file in sorted(folder.glob("*.png")):
            with image_module.open(file) as image:
                rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
            rgba[..., :3] *= rgba[..., 3:]  # premultiplied, lest transparent pixels bleed
            channels = [
                image_module.fromarray(rgba[..., c]).resize((size, size), image_module.BOX)
                for c in range(4)
            ]
            variants.append(np.stack(channels, axis=-1))
        layers.append(np.stack(variants))
    return tuple(layers)


def combinations(size: int = 32) -> int:
    """The number of layer combinations, 360,000."""
    return int(np.prod([len(layer) for layer in _layers(size)]))


def render(indices: np.ndarray, size: int = 32) -> np.ndarray:
    """Draws the combinations ``indices`` (N,) on white, uint8 ``(N, 3, size, size)``."""
    layers = _layers(size)
    choice = np.unravel_index(indices, [len(layer) for layer in layers])
    out = np.ones((len(indices), size, size, 3), dtype=np.float32)
    for layer, variant in zip(layers, choice, strict=True):
        rgba = layer[variant]
        out = rgba[..., :3] + (1 - rgba[..., 3:]) * out
    pixels = np.round(np.clip(out, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _pictures(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Draws the combinations one after the other, in chunks of bounded memory."""
    for start in range(0, len(indices), _CHUNK):
        yield from render(indices[start : start + _CHUNK], size)


class Cats(StoredImages):
    """Distinct cat pictures of one split; item ``i`` is ``(3, size, size)`` in [-1, 1].

    Arguments:
        split: ``"train"`` or ``"heldout"``; no picture is in both.
        count: Number of pictures N; the same first ones whatever the count. At most about 19,000
            for held-out.
        size: Side in pixels.

    Raises:
        DataError: The split is unknown, or has fewer distinct pictures than ``count``.
        MissingDependencyError: robohash or Pillow is not installed.

    Attributes:
        images: uint8 tensor ``(N, 3, size, size)``.
    """

    def __init__(self, split: str = "train", count: int = 5_000, size: int = 32) -> None:
        if split not in SPLITS:
            raise DataError(f"no split {split!r}", where="Cats", fix=f"one of {SPLITS}")
        if count < 1 or size < 1:
            raise DataError(f"count={count}, size={size}", where="Cats", fix="both at least 1")
        order = np.random.default_rng(_SPLIT_SEED).permutation(combinations(size))
        held_out, training = order[:POOL], order[POOL:]
        seen: set[bytes] = set()
        if split == "train":
            seen = {picture.tobytes() for picture in _pictures(held_out, size)}
        kept: list[np.ndarray] = []
        for picture in _pictures(training if split == "train" else held_out, size):
            if picture.tobytes() not in seen:
                seen.add(picture.tobytes())
                kept.append(picture)
            if len(kept) == count:
                break
        else:
            raise DataError(
                f"only {len(kept)} distinct cats of {count} asked for", where=f"size={size}"
            )
        super().__init__(torch.from_numpy(np.stack(kept)), None, "cats")
