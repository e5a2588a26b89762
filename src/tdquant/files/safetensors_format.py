"""safetensors files as ``LazyTensor``.

The library checks a file and maps it into memory, where everything that was touched counts for as
long as the mapping lasts. So its check is taken, and tensors are read from the open file.

References:
    https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.files.tensors import LazyTensor, read_bytes

SUFFIX = ".safetensors"
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}  # fmt: skip


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
