"""safetensors files as ``LazyTensor``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.files.tensors import LazyTensor

SUFFIX = ".safetensors"
SMALL = 1024
"""Elements up to which a tensor is read at once: opening the file again costs more."""

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}  # fmt: skip


def safetensors_in(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name.

    Raises:
        SafetensorError: It is cut or of another format, or has a type that torch does not have.
        OSError: It cannot be read.
    """
    found = {}
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            header = opened.get_slice(name)
            kind = header.get_dtype()
            if kind not in _TYPES:
                raise SafetensorError(f"{name} is of type {kind}, which torch does not have")
            shape = torch.Size(header.get_shape())
            load = partial(_load, path, name)
            if shape.numel() <= SMALL:
                load = opened.get_tensor(name).clone
            found[name] = LazyTensor(shape, _TYPES[kind], load)
    return found


def _load(path: Path, name: str) -> Tensor:
    # Opened anew for each tensor: the library maps the file, and what one mapping has touched
    # counts as memory of the process for as long as it lasts.
    with safe_open(path, framework="pt") as opened:
        return opened.get_tensor(name).clone()
