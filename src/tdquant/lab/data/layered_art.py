"""Pictures composed from layered art, with seeded splits that share no picture.

robohash carries sets of RGBA layers: a folder a layer, a file a variant, the order in the text
after ``#`` of the folder's name. A layer with premultiplied colour ``c`` and opacity ``a`` goes
over what is below it:

    out = c + (1 - a) * out

Such pictures are combinatorial art and not a photographic benchmark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdquant.errors import DataError
from tdquant.support.optional import require

SPLITS = ("train", "heldout")
POOL = 20_000
_SPLIT_SEED = 23
_CHUNK = 2_000


class LayeredArt:
    """All combinations of the layers of one or several palettes, numbered.

    Combination ``k`` is variant ``k mod n`` of the layers of palette ``k div n``, where ``n`` is
    the number of combinations of each palette; the topmost layer varies fastest.

    Arguments:
        name: What a picture shows, in the plural.
        palettes: Folders of layers in robohash's ``sets``.
    """

    def __init__(self, name: str, palettes: tuple[str, ...]) -> None:
        self.name, self.palettes = name, palettes

    def combinations(self) -> int:
        """The number of combinations over all palettes."""
        return len(self.palettes) * int(np.prod(self._variants()))

    def render(self, indices: np.ndarray, size: int) -> np.ndarray:
        """Draws the combinations ``indices`` (N,) on white, uint8 ``(N, 3, size, size)``."""
        palette, *choice = np.unravel_index(indices, (len(self.palettes), *self._variants()))
        out = np.ones((len(indices), size, size, 3), dtype=np.float32)
        for number in np.unique(palette):
            rows = palette == number
            for layer, variant in zip(_layers(self.palettes[number], size), choice, strict=True):
                rgba = layer[variant[rows]]
                out[rows] = rgba[..., :3] + (1 - rgba[..., 3:]) * out[rows]
        pixels = np.round(np.clip(out, 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def split(self, split: str, count: int, size: int) -> Tensor:
        """The first ``count`` distinct pictures of a split, uint8 ``(count, 3, size, size)``.

        Combinations are shuffled by a fixed seed. The first ``POOL`` belong to the held-out
        split, the rest to the training split. Combinations that look the same at ``size`` are
        kept once, and a training picture that equals any of the held-out pool is dropped.

        Raises:
            DataError: The split is unknown, or has fewer distinct pictures than ``count``.
            MissingDependencyError: robohash or Pillow is not installed.
        """
        if split not in SPLITS:
            raise DataError(f"no split {split!r}", where=self.name, fix=f"one of {SPLITS}")
        if count < 1 or size < 1:
            raise DataError(f"count={count}, size={size}", where=self.name, fix="both at least 1")
        held_out, training = np.split(_order(self.combinations()), [POOL])
        excluded = _look_of_pool(self, size) if split == "train" else frozenset()
        seen: set[bytes] = set()
        kept: list[np.ndarray] = []
        for picture in self.pictures(training if split == "train" else held_out, size):
            if (look := _look(picture)) not in excluded and look not in seen:
                seen.add(look)
                kept.append(picture)
            if len(kept) == count:
                return torch.from_numpy(np.stack(kept))
        raise DataError(
            f"only {len(kept)} distinct {self.name} of {count} asked for", where=f"size={size}"
        )

    def _variants(self) -> tuple[int, ...]:
        return tuple(len(files) for files in _files(self.palettes[0]))

    def pictures(self, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Draws the combinations one after the other, in chunks of bounded memory."""
        for start in range(0, len(indices), _CHUNK):
            yield from self.render(indices[start : start + _CHUNK], size)


def _order(combinations: int) -> np.ndarray:
    return np.random.default_rng(_SPLIT_SEED).permutation(combinations)


def _look(picture: np.ndarray) -> bytes:
    """A digest that only pictures that look the same share."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


@lru_cache(maxsize=8)
def _look_of_pool(art: LayeredArt, size: int) -> frozenset[bytes]:
    """Digests of the held-out pictures, which take seconds to draw."""
    pool = _order(art.combinations())[:POOL]
    return frozenset(_look(picture) for picture in art.pictures(pool, size))


@lru_cache(maxsize=64)
def _files(palette: str) -> tuple[tuple[Path, ...], ...]:
    """The variants of each layer, bottom first."""
    package = Path(str(require("robohash", "cats").__file__)).parent
    folder = package / "sets" / palette
    layers = sorted(folder.glob("*#*"), key=lambda p: p.name.split("#")[1])
    if not layers:
        raise DataError(
            f"robohash carries no {palette}", where=str(package), fix="pip install robohash==2.0"
        )
    return tuple(tuple(sorted(layer.glob("*.png"))) for layer in layers)


@lru_cache(maxsize=64)
def _layers(palette: str, size: int) -> tuple[np.ndarray, ...]:
    """Premultiplied RGBA layers, bottom first, each ``(variants, size, size, 4)`` in [0, 1]."""
    image_module = require("PIL.Image", "cats")
    layers = []
    for files in _files(palette):
        variants = []
        for file in files:
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
