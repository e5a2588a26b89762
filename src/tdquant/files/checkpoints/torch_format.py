"""The two formats of ``torch.save``, read tensor by tensor.

    zip     NAME/data.pkl, and NAME/data/KEY for each storage
    legacy  magic number, protocol, system, the pickle, the keys of the storages, the storages

The pickle tells which part of which storage each tensor is. It is read without running anything
that it names (``tdquant.files.checkpoints.unpickling``).

References:
    https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
import zlib
from typing import Any, BinaryIO, cast

from tdquant.files.checkpoints import unpickling
from tdquant.files.checkpoints.torch_tensors import Place, TensorReader
from tdquant.files.checkpoints.unpickling import unpickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch(file: BinaryIO) -> Any:
    """The object in a file of ``torch.save``, its tensors still in the file.

    Arguments:
        file: The file, which has to stay open while tensors are read.

    Returns:
        Containers, numbers, strings, ``LazyTensor`` and, for all else, ``Inert``.

    Raises:
        pickle.UnpicklingError: The file is cut, malformed or hostile, or of another format.
        zipfile.BadZipFile: The archive is damaged.
    """
    if zipfile.is_zipfile(file):
        return _read_zip(file)
    file.seek(0)
    return _read_legacy(file)


def _read_zip(file: BinaryIO) -> Any:
    archive = zipfile.ZipFile(file)
    names = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("a zip archive, but none of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in names:
        raise pickle.UnpicklingError("a TorchScript program, not a checkpoint")
    order = _content(archive, names, folder + "byteorder", 16)
    if order not in (None, b"little", b"big"):
        raise pickle.UnpicklingError("damaged: an unknown order of bytes")
    swapped = order not in (None, sys.byteorder.encode())

    def locate(key: str) -> Place:
        entry = names.get(f"{folder}data/{key}")
        if entry is None:
            raise pickle.UnpicklingError(f"it is cut: storage {key} is missing")
        return _place(archive, file, entry)

    content = _content(archive, names, pickles[0], unpickling.MOST_BYTES)
    assert content is not None
    sizes = {name.removeprefix(folder + "data/"): entry.file_size for name, entry in names.items()}
    return TensorReader(locate, sizes, swapped).read(io.BytesIO(content))


def _content(
    archive: zipfile.ZipFile, names: dict[str, zipfile.ZipInfo], name: str, most: int
) -> bytes | None:
    """The bytes of a small entry, or None where there is none.

    Raises:
        pickle.UnpicklingError: It is larger than ``most``, whatever the archive declares.
    """
    if name not in names:
        return None
    assert archive.fp is not None
    place = _place(archive, cast(BinaryIO, archive.fp), names[name])
    if place.length > most:
        raise pickle.UnpicklingError(f"{name} has more than {most:,} bytes")
    place.file.seek(place.start)
    content = place.file.read(place.length)
    if len(content) < place.length or place.crc not in (None, zlib.crc32(content)):
        raise pickle.UnpicklingError(f"{name} is cut or damaged")
    return content


def _place(archive: zipfile.ZipFile, file: BinaryIO, entry: zipfile.ZipInfo) -> Place:
    """Where an entry of an archive lies."""
    if entry.compress_type != zipfile.ZIP_STORED:  # the archive was repacked
        return Place(cast(BinaryIO, archive.open(entry)), 0, entry.file_size)
    # Without checksums torch writes 0, which zipfile itself would refuse.
    return Place(file, _start(file, entry), entry.file_size, entry.CRC or None)


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """First byte of an uncompressed entry: its local header has a length of its own."""
    file.seek(entry.header_offset)
    header = file.read(30)
    method, lengths = header[8:10], header[26:30]
    name, extra = struct.unpack("<HH", lengths) if len(header) == 30 else (0, 0)
    same = file.read(name) == entry.orig_filename.encode("utf-8")
    if header[:4] != b"PK\3\4" or method != b"\0\0" or not same:
        raise pickle.UnpicklingError("damaged: an entry is not where it should be")
    return entry.header_offset + 30 + name + extra


def _read_legacy(file: BinaryIO) -> Any:
    try:
        first = unpickle(file, {})
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(
            "no file of torch.save, or its beginning is damaged"
        ) from error
    if first != MAGIC:
        raise pickle.UnpicklingError("a pickle, but none of torch.save")
    if unpickle(file, {}) != PROTOCOL:
        raise pickle.UnpicklingError("a version of torch.save that is not known")
    system = unpickle(file, {})
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    places: dict[str, Place] = {}

    def locate(key: str) -> Place:
        if key not in places:
            raise pickle.UnpicklingError(f"it is cut: storage {key} is missing")
        return places[key]

    reader = TensorReader(locate, None, little != (sys.byteorder == "little"))
    found = reader.read(file)
    keys = unpickle(file, {})
    if not isinstance(keys, list):
        raise pickle.UnpicklingError("damaged: no list of storages")
    position, size = file.tell(), file.seek(0, io.SEEK_END)
    for key in map(str, keys):
        storage = reader.storages.get(key)
        file.seek(position)
        header = file.read(8)
        if storage is None or len(header) < 8:
            raise pickle.UnpicklingError("it is cut: a storage is missing")
        count = struct.unpack("<q" if little else ">q", header)[0]
        length = storage.count * storage.dtype.itemsize
        if count != storage.count or position + 8 + length > size:
            raise pickle.UnpicklingError(f"it is cut or damaged at storage {key}")
        places[key] = Place(file, position + 8, length)
        position += 8 + length
    return found
