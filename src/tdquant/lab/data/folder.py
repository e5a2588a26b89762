"""A folder of images, with all folders inside it."""

from __future__ import annotations

import os
from pathlib import Path

from tdquant.errors import DataError
from tdquant.files.looking import is_file, is_folder, walk
from tdquant.lab.data.encoded import EncodedImages, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


def picture_files(root: str | os.PathLike[str]) -> list[Path]:
    """The images under a folder, of one of ``SUFFIXES``, sorted by path. Hidden files and folders
    are left out; links to folders are entered, each folder once.

    Raises:
        DataError: There is no such folder, no image in it, or a name that is no text.
        StorageError: This process may not look into one of the folders.
    """
    place = Path(root)
    if not is_folder(place):
        raise DataError("no such folder", where=str(place))
    found, entered = [], set()
    for folder, inside, names in walk(place, follow=True):
        real = os.path.realpath(folder)
        inside[:] = [] if real in entered else sorted(n for n in inside if not n.startswith("."))
        if real not in entered:
            found += [folder / name for name in names if not name.startswith(".")]
        entered.add(real)
    found = sorted(p for p in found if p.suffix.lower() in SUFFIXES and is_file(p))
    if not found:
        raise DataError("no images", where=str(place), why=f"looked for {', '.join(SUFFIXES)}")
    odd = [ascii(str(p)) for p in found if not str(p).isprintable()]
    if odd:
        raise DataError(
            f"{len(odd)} names of images cannot be printed",
            where=odd[0],
            why="they are not in UTF-8, or have control characters",
            fix="rename them",
        )
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
