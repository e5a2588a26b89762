"""Tensors in files: shapes and dtypes at once, numbers when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in an open file.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        load: Reads the numbers: a tensor on the CPU that shares memory with no other.
    """

    shape: torch.Size
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The numbers, half precision as float32."""
        tensor = self.load().reshape(self.shape)
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        return tensor.float() if half else tensor

    def reshape(self, *shape: int) -> LazyTensor:
        """The same numbers in another shape."""
        return replace(self, shape=torch.Size(shape))


def read_bytes(file: BinaryIO, start: int, length: int) -> Tensor:
    """Bytes of an open file as a uint8 tensor ``(length,)``.

    Raises:
        EOFError: The file ends before.
    """
    raw = torch.empty(length, dtype=torch.uint8)
    file.seek(start)
    reader: Any = file
    if length and reader.readinto(raw.numpy()) != length:
        raise EOFError("the file is cut")
    return raw


def fill_module(module: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
    """Copies tensors into parameters and buffers one by one, so that none is in memory twice.

    Arguments:
        module: The module. Parameters and buffers on the meta device are allocated on the CPU.
        tensors: Value by the name of each parameter and buffer, of its shape.
    """
    for name, value in tensors.items():
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        target = getattr(owner, last)
        numbers = value.read()
        if not target.is_meta:
            with torch.no_grad():
                target.copy_(numbers)
            continue
        if _layout(numbers) != _layout(target):
            numbers = torch.empty_like(target, device="cpu").copy_(numbers)
        if isinstance(target, nn.Parameter):
            numbers = nn.Parameter(numbers, target.requires_grad)
        setattr(owner, last, numbers)


def _layout(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    return tensor.dtype, tensor.shape, tensor.stride()
