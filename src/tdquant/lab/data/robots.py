"""Robots: small RGB images composed from layered art, with seeded disjoint splits.

The art is robohash's ``set1``, drawn by Zikri Kader (CC-BY-3.0 or CC-BY-4.0): ten colours, each of
five layers of RGBA images with ten variants: bodies, faces, accessories, eyes and mouths. These
are 1,000,000 combinations.
"""

from __future__ import annotations

from tdquant.lab.data.base import StoredImages
from tdquant.lab.data.layered_art import LayeredArt

ATTRIBUTION = (
    "Robot art: Zikri Kader, CC-BY-3.0 or CC-BY-4.0, through robohash set1 (robohash.org)."
)
COLOURS = (
    "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow",
)  # fmt: skip
ART = LayeredArt("robots", tuple(f"set1/{colour}" for colour in COLOURS))


class Robots(StoredImages):
    """Distinct robot pictures of one split; item ``i`` is ``(3, size, size)`` in [-1, 1].

    Arguments:
        split: ``"train"`` or ``"heldout"``; no picture is in both.
        count: Number of pictures N; the same first ones whatever the count. At most 20,000 for
            held-out.
        size: Side in pixels.

    Raises:
        DataError: The split is unknown, or has fewer distinct pictures than ``count``.
        MissingDependencyError: robohash or Pillow is not installed.

    Attributes:
        images: uint8 tensor ``(N, 3, size, size)``.
    """

    def __init__(self, split: str = "train", count: int = 5_000, size: int = 32) -> None:
        super().__init__(ART.split(split, count, size), None, "robots")
