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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tdquant.files.tensors import LazyTensor
from tdquant.files.unpickling import Inert, checked_key, unpickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_PICKLE = 1 << 28
"""Bytes of a pickle without its tensors."""

SMALL = 1 << 20
"""Elements up to which a tensor may be larger than its storage, as expanded ones are."""

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip

Locate = Callable[[str], tuple[BinaryIO, int, int]]
"""Key of a storage -> an open file, and first byte and number of bytes of the storage in it."""


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
    swapped = _content(archive, names, folder + "byteorder", 16) not in (
        None, sys.byteorder.encode(),
    )  # fmt: skip

    def locate(key: str) -> tuple[BinaryIO, int, int]:
        entry = names.get(f"{folder}data/{key}")
        if entry is None:
            raise pickle.UnpicklingError(f"it is cut: storage {key} is missing")
        if entry.compress_type != zipfile.ZIP_STORED:  # somebody packed the file again
            return archive.open(entry), 0, entry.file_size  # type: ignore[return-value]
        return file, _start(file, entry), entry.file_size

    content = _content(archive, names, pickles[0], MOST_PICKLE)
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
    with archive.open(names[name]) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise pickle.UnpicklingError(f"{name} has more than {most:,} bytes")
    return content


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """First byte of an entry that is stored as it is: its local header has a length of its own."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise pickle.UnpicklingError(f"damaged: no entry {entry.filename} at its place")
    name, extra = struct.unpack("<HH", header[26:30])
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
    places: dict[str, tuple[int, int]] = {}

    def locate(key: str) -> tuple[BinaryIO, int, int]:
        if key not in places:
            raise pickle.UnpicklingError(f"it is cut: storage {key} is missing")
        return file, *places[key]

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
        places[key] = position + 8, length
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
            "torch.Size": tuple,
            "collections.OrderedDict": _dictionary,
        }

    def read(self, file: BinaryIO) -> Any:
        """The object of the pickle at the current position."""
        return unpickle(file, self.functions, self._storage)

    def _storage(self, identity: Any) -> _Storage:
        """A storage by its persistent id, ``("storage", type, key, device, elements, ...)``."""
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, kind, key, _, count = identity[:5]
        if len(identity) > 5 and identity[5] is not None:
            raise pickle.UnpicklingError("views of storages, as torch 0.3 wrote them")
        name = kind.name.rpartition(".")[2] if isinstance(kind, Inert) else ""
        if name not in _STORAGES or not _natural(count):
            raise pickle.UnpicklingError(f"a storage of type {name or kind!r}")
        storage = _Storage(str(key), _STORAGES[name], count)
        length = count * storage.dtype.itemsize
        if self.sizes is not None and length > self.sizes.get(storage.key, -1):
            raise pickle.UnpicklingError(f"it is cut or damaged at storage {key}")
        return self.storages.setdefault(storage.key, storage)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
        dtype = storage.dtype if isinstance(storage, _Storage) else torch.uint8
        return self._view(storage, dtype, offset, size, stride)

    def _typed(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
        *_: Any,
    ) -> LazyTensor:  # fmt: skip
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Inert) else ""
        found = getattr(torch, name, None) if name.isidentifier() else None
        if not isinstance(found, torch.dtype):
            raise pickle.UnpicklingError(f"a tensor of type {name or dtype!r}")
        return self._view(storage, found, offset, size, stride)

    def _subclass(self, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        """A tensor of a class of its own, as the plain tensor that it holds."""
        known = self.functions.get(function.name) if isinstance(function, Inert) else None
        if known is None or not isinstance(arguments, tuple):
            return Inert("torch._tensor._rebuild_from_type_v2()")
        return known(*arguments)

    def _view(
        self, storage: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any
    ) -> LazyTensor:
        shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not isinstance(storage, _Storage) or not shaped:
            raise pickle.UnpicklingError("damaged: a tensor without a storage or a shape")
        if not all(map(_natural, (offset, *size, *stride))):
            raise pickle.UnpicklingError("damaged: a tensor of negative size")
        held = storage.count * storage.dtype.itemsize // dtype.itemsize
        count = math.prod(size)
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (offset + extent > held or count > max(held, SMALL)):
            raise pickle.UnpicklingError(f"damaged: a tensor {size} in a storage of {held}")
        load = partial(self._load, storage.key, dtype, offset, size, stride, extent)
        return LazyTensor(torch.Size(size), dtype, load)

    def _load(
        self,
        key: str,
        dtype: torch.dtype,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        extent: int,
    ) -> Tensor:
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        file, start, length = self.locate(key)
        raw = torch.empty(extent * dtype.itemsize, dtype=torch.uint8)
        file.seek(start + offset * dtype.itemsize)
        if raw.numel() > length or file.readinto(raw.numpy()) != raw.numel():  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"it is cut at storage {key}")
        if self.swapped and dtype.itemsize > 1:
            width = dtype.itemsize // (2 if dtype.is_complex else 1)
            raw.numpy().view(np.dtype(f"u{width}")).byteswap(inplace=True)
        values = raw.ne(0) if dtype == torch.bool else raw.view(dtype)
        return values.as_strided(size, stride).contiguous()


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    return {checked_key(key): value for key, value in items}
