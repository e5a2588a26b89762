"""Cats: small RGB images composed from layered art, with seeded disjoint splits.

The art is robohash's ``set4``, drawn by David Revoy (CC-BY-4.0), five layers of RGBA images: 15
bodies, 10 furs, 15 pairs of eyes, 10 mouths and 16 accessories, 360,000 combinations.
"""

from __future__ import annotations

from tdquant.lab.data.base import StoredImages
from tdquant.lab.data.layered_art import LayeredArt

ATTRIBUTION = "Cat art: David Revoy, CC-BY-4.0, through robohash set4."
ART = LayeredArt("cats", ("set4",))


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
        super().__init__(ART.split(split, count, size), None, "cats")
