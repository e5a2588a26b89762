"""The two formats of ``torch.save``, read tensor by tensor.

    zip     NAME/data.pkl, and NAME/data/KEY for each storage
    legacy  magic number, protocol, system, the pickle, the keys of the storages, the storages

The pickle says of each tensor which part of which storage it is. It is read without running
anything that it names (``tdquant.files.unpickling``).

References:
    https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from tdquant.files import unpickling
from tdquant.files.tensors import LazyTensor, read_bytes
from tdquant.files.unpickling import Inert, checked_key, unpickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SMALL = 1 << 20
"""Elements up to which a tensor may be larger than its storage, as expanded ones are."""

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = {
    f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)
}
MOST_DIMENSIONS = 64


class Place(NamedTuple):
    """Where a storage lies.

    Attributes:
        file: An open file.
        start: First byte in it.
        length: Number of bytes.
        crc: CRC-32 of them, or None if it is not known.
    """

    file: BinaryIO
    start: int
    length: int
    crc: int | None = None


Locate = Callable[[str], Place]
"""Finds a storage by its key."""


@dataclass(frozen=True)
class _Storage:
    """What a pickle says of a storage."""

    key: str
    dtype: torch.dtype
    count: int


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
    return _Reader(locate, sizes, swapped).read(io.BytesIO(content))


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
    if entry.compress_type != zipfile.ZIP_STORED:  # somebody packed the file again
        return Place(cast(BinaryIO, archive.open(entry)), 0, entry.file_size)
    # torch writes 0 where it is told not to compute checksums, which zipfile itself would refuse.
    return Place(file, _start(file, entry), entry.file_size, entry.CRC or None)


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """First byte of an entry that is stored as it is: its local header has a length of its own."""
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

    reader = _Reader(locate, None, little != (sys.byteorder == "little"))
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


class _Reader:
    """Unpickles what refers to storages.

    Arguments:
        locate: Finds a storage.
        sizes: Bytes of each storage, or None where the pickle comes before the storages.
        swapped: Whether numbers have the other order of bytes.
    """

    def __init__(self, locate: Locate, sizes: dict[str, int] | None, swapped: bool) -> None:
        self.locate, self.sizes, self.swapped = locate, sizes, swapped
        self.storages: dict[str, _Storage] = {}
        self.functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": self._subclass,
            "torch.Size": _size,
            "collections.OrderedDict": _dictionary,
        }

    def read(self, file: BinaryIO) -> Any:
        """The object of the pickle at the current position."""
        return unpickle(file, self.functions, self._storage)

    def _storage(self, identity: Any) -> _Storage | Inert:
        """A storage by its persistent id, ``("storage", type, key, device, elements, ...)``."""
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, kind, key, _, count = identity[:5]
        if len(identity) > 5 and identity[5] is not None:
            raise pickle.UnpicklingError("views of storages, as torch 0.3 wrote them")
        name = kind.name.rpartition(".")[2] if isinstance(kind, Inert) else ""
        if not _natural(count) or not isinstance(key, (str, int)):
            raise pickle.UnpicklingError("damaged: a storage without a size")
        if name not in _STORAGES:  # such as those of quantized tensors
            return Inert(name)
        storage = _Storage(str(key), _STORAGES[name], count)
        length = count * storage.dtype.itemsize
        if self.sizes is not None and length > self.sizes.get(storage.key, -1):
            raise pickle.UnpicklingError(f"it is cut or damaged at storage {key}")
        return self.storages.setdefault(storage.key, storage)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None,
        hooks: Any = None, metadata: Any = None,
    ) -> LazyTensor | Inert:  # fmt: skip
        dtype = storage.dtype if isinstance(storage, _Storage) else torch.uint8
        return self._view(storage, dtype, offset, size, stride, metadata)

    def _typed(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
        metadata: Any = None,
    ) -> LazyTensor | Inert:  # fmt: skip
        found = _DTYPES.get(dtype.name) if isinstance(dtype, Inert) else None
        if found is None:
            return Inert("a tensor of an unknown type")
        return self._view(storage, found, offset, size, stride, metadata)

    def _subclass(self, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        """A tensor of a class of its own, as the plain tensor that it holds."""
        known = self.functions.get(function.name) if isinstance(function, Inert) else None
        if known is None or not isinstance(arguments, tuple):
            return Inert("torch._tensor._rebuild_from_type_v2()")
        return known(*arguments)

    def _view(
        self, storage: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any, metadata: Any
    ) -> LazyTensor | Inert:
        if isinstance(storage, Inert):
            return storage
        shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not isinstance(storage, _Storage) or not shaped or len(size) > MOST_DIMENSIONS:
            raise pickle.UnpicklingError("damaged: a tensor without a storage or a shape")
        if not all(map(_natural, (offset, *size, *stride))):
            raise pickle.UnpicklingError("damaged: a tensor of negative size")
        held = storage.count * storage.dtype.itemsize // dtype.itemsize
        count = math.prod(size)
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (offset + extent > held or count > max(held, SMALL)):
            raise pickle.UnpicklingError(f"damaged: a tensor {size} in a storage of {held}")
        bits = metadata if isinstance(metadata, dict) else {}
        conjugate, negative = bits.get("conj") is True, bits.get("neg") is True
        part = offset, extent, size, stride

        def load() -> Tensor:
            values = self._load(storage.key, dtype, *part)
            values = values.conj().resolve_conj() if conjugate else values
            return -values if negative else values

        return LazyTensor(torch.Size(size), dtype, load)

    def _load(
        self,
        key: str,
        dtype: torch.dtype,
        offset: int,
        extent: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> Tensor:
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        place, length = self.locate(key), extent * dtype.itemsize
        if length > place.length:
            raise pickle.UnpicklingError(f"it is cut at storage {key}")
        raw = read_bytes(place.file, place.start + offset * dtype.itemsize, length)
        if length == place.length and place.crc not in (None, zlib.crc32(_buffer(raw))):
            raise pickle.UnpicklingError(f"damaged: storage {key} has other numbers than written")
        if self.swapped and dtype.itemsize > 1:
            width = dtype.itemsize // (2 if dtype.is_complex else 1)
            raw.numpy().view(np.dtype(f"u{width}")).byteswap(inplace=True)
        values = raw.ne(0) if dtype == torch.bool else raw.view(dtype)
        return values.as_strided(size, stride).contiguous()


def _buffer(raw: Tensor) -> memoryview:
    return memoryview(cast(Any, raw.numpy()))


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _size(shape: Any = ()) -> tuple[Any, ...]:
    if not isinstance(shape, tuple):
        raise pickle.UnpicklingError("damaged: a size that is no tuple")
    return shape


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    return {checked_key(key): value for key, value in items}
