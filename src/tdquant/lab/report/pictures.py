"""Pictures inside the page: PNGs as data, encoded as small as it goes without loss."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.lab.report.markup import Markup, tag
from tdquant.support.optional import require

PALETTE = 256
LARGEST_FIGURE = 1400
LARGEST_TILE = 256
SMALL = 64
FEWEST = 4


@dataclass(frozen=True)
class Pictures:
    """Makes pictures of the page.

    Attributes:
        shrink: 1, or less where the page would be too large: a factor of the width of drawings
            and of tiles of more than ``SMALL`` pixels, and of how many smaller tiles are shown.
            Those keep their pixels, which are what a reader looks at.
    """

    shrink: float = 1.0

    def figure(self, path: Path, alt: str) -> Markup:
        """A drawing, as wide as it is."""
        image = _open(path)
        factor = min(self.shrink, LARGEST_FIGURE / image.width)
        return _element(_resized(image, factor), alt, class_="drawn")

    def strip(self, path: Path, tile: int, alt: str) -> Markup:
        """A row of tiles, each ``tile`` pixels wide, shown at twice that or at about 64 pixels.

        Arguments:
            path: The file.
            tile: Width and height of a tile.
            alt: What is seen.
        """
        image = _open(path)
        count = self.count(max(1, image.width // tile), tile)
        image = image.crop((0, 0, min(image.width, count * tile), image.height))
        shown = min(tile * max(1, 64 // tile), 128)
        width = max(1, image.width // tile) * shown
        return _element(self._smaller(image, tile), alt, width=width,
                        height=max(1, width * image.height // image.width),
                        class_="tiles")  # fmt: skip

    def sheet(self, paths: Sequence[Path], columns: int, alt: str) -> Markup:
        """Pictures of one size side by side, row after row.

        Arguments:
            paths: The files, at least one.
            columns: Pictures in a row.
            alt: What is seen.

        Raises:
            StorageError: They are of different sizes.
        """
        images = [_open(path) for path in paths]
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise StorageError(
                "pictures of different sizes", where=str(paths[0].parent), why=str(sorted(sizes))
            )
        width, height = images[0].size
        columns = min(columns, len(images))
        rows = -(-len(images) // columns)
        whole = require("PIL.Image", "data").new("RGB", (columns * width, rows * height), "white")
        for i, image in enumerate(images):
            whole.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
        return _element(self._smaller(whole, width), alt, class_="tiles")

    def grid(self, path: Path, count: int, alt: str) -> Markup:
        """The ``grid.png`` of a run.

        Arguments:
            path: The file.
            count: How many pictures are in it, nearly as many in a row as there are rows.
            alt: What is seen.
        """
        image = _open(path)
        tile = image.width // math.ceil(count**0.5)
        return _element(self._smaller(image, tile), alt, class_="tiles")

    def width(self, path: Path) -> int:
        """Width of a picture, in its own pixels."""
        return int(_open(path).width)

    def count(self, asked: int, tile: int) -> int:
        """How many of ``asked`` tiles of ``tile`` pixels are shown."""
        return asked if tile > SMALL else min(asked, max(FEWEST, round(asked * self.shrink)))

    def _smaller(self, image: Any, tile: int) -> Any:
        if tile <= SMALL:
            return image
        return _resized(image, min(1.0, LARGEST_TILE / tile) * self.shrink)


def element_of(codes: Any, colours: Sequence[tuple[int, int, int]], **attributes: Any) -> Markup:
    """A picture of codes ``(H, W)``, uint8, in given colours, with no words of its own."""
    image = require("PIL.Image", "data").fromarray(codes, "P")
    image.putpalette([part for colour in colours for part in colour])
    return _element(image, "", **attributes)


def _open(path: Path) -> Any:
    library = require("PIL.Image", "data")
    try:
        with warnings.catch_warnings():
            # A picture of a few kilobytes that unfolds to gigabytes is no picture of a run.
            warnings.simplefilter("error", library.DecompressionBombWarning)
            with library.open(path) as image:
                image.load()
                return image.convert("RGBA" if "transparency" in image.info or "A" in image.mode
                                     else "RGB")  # fmt: skip
    except (OSError, SyntaxError, library.DecompressionBombWarning,
            library.DecompressionBombError) as error:  # fmt: skip
        raise StorageError("a picture is damaged", where=str(path), why=str(error)) from error


def _resized(image: Any, factor: float) -> Any:
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, require("PIL.Image", "data").Resampling.LANCZOS)


def _element(image: Any, alt: str, **attributes: Any) -> Markup:
    attributes = {"width": image.width, "height": image.height, **attributes}
    return tag("img", src=f"data:image/png;base64,{base64.b64encode(encode(image)).decode()}",
               alt=alt, decoding="async", **attributes)  # fmt: skip


def encode(image: Any) -> bytes:
    """The smaller of the picture's PNG as it is and, where it has few colours, with a palette."""
    forms = [image]
    if image.mode == "RGB" and image.getcolors(PALETTE) is not None:
        forms.append(image.quantize(PALETTE, dither=0))
        if forms[-1].convert("RGB").tobytes() != image.tobytes():
            forms.pop()
    sizes = []
    for form in forms:
        buffer = io.BytesIO()
        form.save(buffer, "PNG", optimize=True)
        sizes.append(buffer.getvalue())
    return min(sizes, key=len)
