"""Pictures inside the page: PNGs as data, encoded as small as possible without loss."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdquant.errors import StorageError
from tdquant.lab.report.templating import EXTRA
from tdquant.support.optional import require

PALETTE = 256
LARGEST_FIGURE = 1400
LARGEST_TILE = 256
SMALL = 64
FEWEST = 4


@dataclass(frozen=True)
class Picture:
    """A picture and the size at which it is shown."""

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """Makes pictures of the page.

    Attributes:
        shrink: 1, or less where the page would be too large: a factor of the width of drawings
            and of tiles of more than ``SMALL`` pixels, and of how many smaller tiles are shown.
            Those keep their pixels, which are what a reader looks at.
    """

    shrink: float = 1.0

    def figure(self, path: Path) -> Picture:
        """A drawing, as wide as it is."""
        image = _open(path)
        return _picture(_resized(image, min(self.shrink, LARGEST_FIGURE / image.width)))

    def strip(self, path: Path, tile: int) -> Picture:
        """A row of tiles, each ``tile`` pixels wide, shown at twice that or at about 64 pixels."""
        image = _open(path)
        count = self.count(max(1, image.width // tile), tile)
        image = image.crop((0, 0, min(image.width, count * tile), image.height))
        shown = min(tile * max(1, 64 // tile), 128)
        width = max(1, image.width // tile) * shown
        height = max(1, width * image.height // image.width)
        return replace(_picture(self._smaller(image, tile)), width=width, height=height)

    def sheet(self, paths: Sequence[Path], columns: int) -> Picture:
        """Pictures of one size side by side, row after row.

        Arguments:
            paths: The files, at least one.
            columns: Pictures in a row.

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
        whole = require("PIL.Image", EXTRA).new("RGB", (columns * width, rows * height), "white")
        for i, image in enumerate(images):
            whole.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
        return _picture(self._smaller(whole, width))

    def grid(self, path: Path, count: int) -> Picture:
        """The ``grid.png`` of a run: ``count`` images, nearly as many in a row as rows."""
        image = _open(path)
        return _picture(self._smaller(image, image.width // math.ceil(count**0.5)))

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


def coloured(codes: np.ndarray, colours: np.ndarray) -> Picture:
    """A picture of codes ``(H, W)`` in given colours ``(N, 3 or 4)``, at most 256, of 0..255."""
    image = require("PIL.Image", EXTRA).fromarray(codes.astype(np.uint8), "P")
    image.putpalette(colours[:, :3].tobytes())
    return _picture(image)


def _open(path: Path) -> Any:
    library = require("PIL.Image", EXTRA)
    try:
        with warnings.catch_warnings():
            # A file of a few kilobytes that unfolds to gigabytes is not from a run.
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
    return image.resize(size, require("PIL.Image", EXTRA).Resampling.LANCZOS)


def _picture(image: Any) -> Picture:
    data = base64.b64encode(encode(image)).decode()
    return Picture(f"data:image/png;base64,{data}", image.width, image.height)


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
