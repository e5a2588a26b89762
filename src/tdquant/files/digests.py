"""SHA-256 digests of files and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, in constant memory."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def hash_tensors(state: Mapping[str, Any]) -> Any:
    """A SHA-256 object over names, dtypes, shapes and bytes of the tensors in a state dict, sorted
    by name. It can be updated further.
    """
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            add_tensor(found, name, value)
    return found


def add_tensor(digest: Any, name: str, value: Tensor) -> None:
    """Updates a digest with one tensor, as ``hash_tensors`` does with those of a state dict."""
    digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
    digest.update(tensor_bytes(value))


def add_value(digest: Any, value: Any) -> None:
    """Updates a digest with arguments of a call: tensors, arrays and pictures by all their
    numbers, dictionaries and sequences of them, anything else by its ``repr``.
    """
    if hasattr(value, "__array_interface__"):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(str(key).encode())
            add_value(digest, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            add_value(digest, item)
    else:
        digest.update(repr(value).encode())


def tensor_bytes(value: Tensor) -> memoryview:
    """The bytes of a tensor's numbers in row-major order."""
    plain = value.detach().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # of one element any stride is contiguous
    return flat.view(torch.uint8).numpy().data
