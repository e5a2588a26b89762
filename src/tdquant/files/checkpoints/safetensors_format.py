"""safetensors files as ``LazyTensor``, read and written tensor by tensor.

The library maps files into memory, where touched pages count as long as the mapping lasts, and it
writes all tensors at once. So its check of files is used, and tensors are read and written here.

References:
    https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.files.checkpoints.tensors import LazyTensor, read_bytes
from tdquant.files.digests import tensor_bytes

SUFFIX = ".safetensors"
_TYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
    "F32": torch.float32, "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""In the order of the library's files: the widest first, so that every tensor is aligned."""

_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def read_safetensors(path: Path, file: BinaryIO) -> dict[str, LazyTensor]:
    """The tensors of a file by name.

    Arguments:
        path: The file.
        file: The same, open; it has to stay open while tensors are read.

    Raises:
        SafetensorError: It is cut or of another format, or has a type that torch does not have.
        OSError: It cannot be read.
    """
    with safe_open(path, framework="pt"):
        pass  # it refuses what is not whole
    (length,) = struct.unpack("<Q", file.read(8))
    found = {}
    for name, entry in json.loads(file.read(length)).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise SafetensorError(f"{name} is of type {entry['dtype']}, which torch does not have")
        shape, dtype = torch.Size(entry["shape"]), _TYPES[entry["dtype"]]
        start, end = entry["data_offsets"]
        load = partial(_load, file, 8 + length + start, end - start, dtype, shape)
        found[name] = LazyTensor(shape, dtype, load)
    return found


def _load(
    file: BinaryIO, start: int, length: int, dtype: torch.dtype, shape: torch.Size
) -> Tensor:
    raw = read_bytes(file, start, length)
    return (raw.ne(0) if dtype == torch.bool else raw.view(dtype)).reshape(shape)


def write_safetensors(
    tensors: Mapping[str, LazyTensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    written: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Writes a file, with one tensor in memory at a time.

    Arguments:
        tensors: Name -> tensor. Each is loaded once, in the order of names, and released.
        path: The file.
        metadata: Words for its header.
        written: Called with every tensor.

    Raises:
        OSError: It cannot be written.
    """
    text, places, end = _header(tensors, metadata)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, place in sorted(places.items()):
            value = tensors[name].load()
            assert (value.shape, value.dtype) == (tensors[name].shape, tensors[name].dtype)
            file.seek(8 + len(text) + place)
            file.write(tensor_bytes(value))
            if written is not None:
                written(name, value)
        file.truncate(8 + len(text) + end)


def file_bytes(
    tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None
) -> int:
    """Bytes of the file that ``write_safetensors`` would write."""
    text, _, end = _header(tensors, metadata)
    return 8 + len(text) + end


def _header(
    tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins behind it, and where the last of them ends."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    places, end = {}, 0
    order = list(_NAMES)
    for name in sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name)):
        tensor = tensors[name]
        places[name], end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), places, end
