"""Tensors in the pickles of ``torch.save``: which part of which storage each of them is.

The pickle is read without running anything that it names (``unpickling`` beside this): here is the
table of the names by which torch says what a tensor is, and what they give.
"""

from __future__ import annotations

import math
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from tdquant.files.checkpoints.tensors import LazyTensor, read_bytes
from tdquant.files.checkpoints.unpickling import Inert, checked_key, unpickle

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
class Storage:
    """What a pickle says of a storage."""

    key: str
    dtype: torch.dtype
    count: int


class TensorReader:
    """Unpickles what refers to storages.

    Arguments:
        locate: Finds a storage.
        sizes: Bytes of each storage, or None where the pickle comes before the storages.
        swapped: Whether numbers have the other order of bytes.
    """

    def __init__(self, locate: Locate, sizes: dict[str, int] | None, swapped: bool) -> None:
        self.locate, self.sizes, self.swapped = locate, sizes, swapped
        self.storages: dict[str, Storage] = {}
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

    def _storage(self, identity: Any) -> Storage | Inert:
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
        storage = Storage(str(key), _STORAGES[name], count)
        length = count * storage.dtype.itemsize
        if self.sizes is not None and length > self.sizes.get(storage.key, -1):
            raise pickle.UnpicklingError(f"it is cut or damaged at storage {key}")
        return self.storages.setdefault(storage.key, storage)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any
    ) -> LazyTensor | Inert:
        """``_rebuild_tensor_v2(..., requires_grad, hooks, metadata)``, or the first of them."""
        dtype = storage.dtype if isinstance(storage, Storage) else torch.uint8
        return self._view(storage, dtype, offset, size, stride, more[2] if more[2:] else None)

    def _typed(
        self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any
    ) -> LazyTensor | Inert:
        """``_rebuild_tensor_v3(..., requires_grad, hooks, dtype, metadata)``."""
        dtype = _DTYPES.get(more[2].name) if isinstance(more[2], Inert) else None
        if dtype is None:
            return Inert("a tensor of an unknown type")
        return self._view(storage, dtype, offset, size, stride, more[3] if more[3:] else None)

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
        if not isinstance(storage, Storage) or not shaped or len(size) > MOST_DIMENSIONS:
            raise pickle.UnpicklingError("damaged: a tensor without a storage or a shape")
        if not all(map(_natural, (offset, *size, *stride))):
            raise pickle.UnpicklingError("damaged: a tensor of negative size")
        held = storage.count * storage.dtype.itemsize // dtype.itemsize
        count = math.prod(size)
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (offset + extent > held or count > max(held, SMALL)):
            raise pickle.UnpicklingError(f"damaged: a tensor {size} in a storage of {held}")
        bits = metadata if isinstance(metadata, dict) else {}
        first, length = offset * dtype.itemsize, extent * dtype.itemsize

        def load() -> Tensor:
            if not count:
                return torch.empty(size, dtype=dtype)
            values = self._values(storage.key, dtype, first, length)
            values = values.as_strided(size, stride).contiguous()
            values = values.conj().resolve_conj() if bits.get("conj") is True else values
            return -values if bits.get("neg") is True else values

        return LazyTensor(torch.Size(size), dtype, load)

    def _values(self, key: str, dtype: torch.dtype, first: int, length: int) -> Tensor:
        """Bytes of a storage as numbers ``(N,)``."""
        place = self.locate(key)
        if length > place.length:
            raise pickle.UnpicklingError(f"it is cut at storage {key}")
        raw = read_bytes(place.file, place.start + first, length)
        if length == place.length and place.crc not in (None, zlib.crc32(_buffer(raw))):
            raise pickle.UnpicklingError(f"damaged: storage {key} has other numbers than written")
        if self.swapped and dtype.itemsize > 1:
            width = dtype.itemsize // (2 if dtype.is_complex else 1)
            raw.numpy().view(np.dtype(f"u{width}")).byteswap(inplace=True)
        return raw.ne(0) if dtype == torch.bool else raw.view(dtype)


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
