"""LSUN: a text file of names under a folder of images, as latent diffusion reads it, or the LMDB
folder that LSUN publishes, in which every value is an encoded image.

References:
    Yu et al., LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in
    the Loop, 2015 (https://arxiv.org/abs/1506.03365).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from tdquant.errors import DataError
from tdquant.files.looking import is_file, is_folder, permitted
from tdquant.lab.data.encoded import EncodedImages, Source
from tdquant.support.optional import require

LMDB_FILE = "data.mdb"
_FIX = "the extracted images with a text file of their names, or LSUN's NAME_lmdb folder"
_LAYOUT = (
    "the images as data_root/NAME for every line NAME of txt_file, or LSUN's NAME_lmdb folder as "
    "data_root; data.params.train.params.data_root=FOLDER changes the place"
)

_environments: dict[str, tuple[int, Any]] = {}


class Lmdb(Source):
    """Images that are the values of an LMDB folder, in the order of the keys.

    The environment is opened, read-only and without locks, when a process first reads an image:
    one inherited through a fork must not be used, and a process cannot open it twice.

    Arguments:
        root: The folder that holds ``data.mdb``.

    Raises:
        DataError: It is not an LMDB folder.
        MissingDependencyError: lmdb is not installed.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        place = str(Path(root).resolve())
        with _environment(place).begin() as transaction:
            self.keys = list(transaction.cursor().iternext(keys=True, values=False))
        super().__init__([key.decode("utf-8", "replace") for key in self.keys], place)

    def open(self, index: int) -> BinaryIO:
        """Opens the value of key ``index``."""
        with _environment(self.place).begin(buffers=True) as transaction:
            value = transaction.get(self.keys[index])
            if value is None:
                raise FileNotFoundError(f"the key {self.names[index]} is gone")
            return io.BytesIO(value)  # a copy: the buffer lives as long as the transaction


def _environment(place: str) -> Any:
    """The LMDB environment of this process at ``place``."""
    owner, environment = _environments.get(place, (0, None))
    if environment is not None and owner == os.getpid():
        return environment
    if environment is not None:
        environment.close()
    lmdb = require("lmdb", "data")
    try:
        environment = lmdb.open(
            place, readonly=True, lock=False, readahead=False, meminit=False, create=False
        )
    except lmdb.Error as error:
        raise DataError("no readable LMDB", where=place, why=str(error), fix=_FIX) from error
    _environments[place] = os.getpid(), environment
    return environment


def lsun(
    data_root: str | os.PathLike[str],
    txt_file: str | os.PathLike[str] | None = None,
    size: int = 256,
    interpolation: str = "bicubic",
    check: bool = True,
    progress: bool = True,
) -> EncodedImages:
    """LSUN images as RGB ``(3, size, size)``: centred square first, then resized.

    Arguments:
        data_root: The folder under which the names lie, or an LMDB folder.
        txt_file: Names of the images, one a line, relative to ``data_root``; None for LMDB.
        size: Side in pixels.
        interpolation: How to resize.
        check: Reads every header now.
        progress: Shows a bar over the check.

    Raises:
        DataError: The files are not there, or a list of names is given for an LMDB folder.
        MissingDependencyError: lmdb is needed and not installed.
    """
    root = Path(data_root)
    if is_file(root / LMDB_FILE):
        if txt_file is not None:
            raise DataError(
                "a list of names for an LMDB folder",
                where=str(root),
                why="its images have keys and no file names",
                fix="leave txt_file out: LSUN has one LMDB folder for each split",
            )
        source: Source = Lmdb(root)
    else:
        source = Source([str(root / name) for name in _names(root, txt_file)], str(root))
    return EncodedImages(source, "lsun", size, interpolation, check, progress)


def _names(root: Path, txt_file: str | os.PathLike[str] | None) -> list[str]:
    """The names in ``txt_file``."""
    if not is_folder(root) or txt_file is None or not is_file(txt_file):
        found = "txt_file is not given" if txt_file is None else f"there is no file {txt_file}"
        found = found if is_folder(root) else f"there is no folder {root}"
        raise DataError(
            "no LSUN images",
            where=str(root),
            why=f"{found} (looked in {Path.cwd()}), and no {LMDB_FILE}",
            fix=_LAYOUT,
        )
    try:
        with permitted(txt_file):
            lines = Path(txt_file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("no text of names", where=str(txt_file), why=str(error)) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError("no names of images", where=str(txt_file))
    return names
