"""A folder of images, with all folders inside it."""

from __future__ import annotations

import os
from pathlib import Path

from tdquant.errors import DataError
from tdquant.lab.data.encoded import EncodedImages, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def picture_files(root: str | os.PathLike[str]) -> list[Path]:
    """The images under a folder, of one of ``SUFFIXES``, sorted by path.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    place = Path(root)
    if not place.is_dir():
        raise DataError("no such folder", where=str(place))
    found = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError("no images", where=str(place), why=f"looked for {', '.join(SUFFIXES)}")
    return found


def folder(
    root: str | os.PathLike[str],
    size: int = 32,
    interpolation: str = "bicubic",
    check: bool = True,
    progress: bool = True,
) -> EncodedImages:
    """The images under ``root``, sorted by path, as RGB ``(3, size, size)``; see EncodedImages.

    Arguments:
        root: The folder. Files of other types than ``SUFFIXES`` are skipped.
        size: Side in pixels.
        interpolation: How to resize.
        check: Reads every header now.
        progress: Shows a bar over the check.

    Raises:
        DataError: There is no such folder, no image in it, or none that can be read.
    """
    source = Source([str(path) for path in picture_files(root)], str(root))
    return EncodedImages(source, "folder", size, interpolation, check, progress)
