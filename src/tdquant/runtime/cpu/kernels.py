"""Ways to compute an operation on the CPU. Each is exact: it equals the frozen layer but for the
rounding of float32.

    int8, int16    the compiled kernels on codes of 8 or 16 bits (AVX2)
    int8 onednn    oneDNN's kernels, as torch ships them: on processors with VNNI, elsewhere only
                   where sums of two products fit 16 bits, since they saturate
    float          rounded inputs and a float product
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.machine import instructions
from tdquant.runtime.cpu.deferred import Deferred
from tdquant.runtime.cpu.operation import Operation
from tdquant.runtime.native import Product, exact_widths, missing
from tdquant.runtime.native.product import Codes


class Kernel(Protocol):
    """``kernel(x, scale) -> y``: float32 images ``(B, C, H, W)``, channels last, or, for an
    operation of one position, contiguous ``(*, C)``; and the scale of x, ``()`` or ``(k,)``, each
    for an equal share of the rows.

    Attributes:
        name: What the summary calls it.
        held: The tensors that it keeps.
    """

    name: str
    held: list[Tensor]

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor: ...


class Native:
    """The compiled kernels."""

    def __init__(self, operation: Operation, wide: bool) -> None:
        assert operation.inputs is not None
        assert operation.weight_scale is not None
        self.name = "int16" if wide else "int8"
        self.codes = replace(operation.inputs, wide=wide)
        self.product = Product(
            operation.weight,
            operation.weight_scale,
            operation.bias,
            self.codes,
            operation.geometry,
        )
        self.border = Border(operation) if self.codes.offset else None
        self.held = self.product.tensors

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        codes = _stored(x, scale, self.codes, self.product.row)
        y = self.product(codes, scale, x.shape)
        return y if self.border is None else self.border.add(y, x.shape)


class OneDnn:
    """oneDNN's 8-bit convolution through torch."""

    name = "int8 onednn"

    def __init__(self, operation: Operation) -> None:
        assert operation.inputs is not None
        assert operation.weight_scale is not None
        self.codes, g = operation.inputs, operation.geometry
        self.walk = (list(g.stride), list(g.padding), list(g.dilation), g.groups)
        self.weight_scale = operation.weight_scale.expand(operation.outputs).contiguous()
        self.packed = torch.ops.onednn.qconv_prepack(
            operation.weight, self.weight_scale, 1.0, self.codes.zero, *self.walk
        )
        self.zeros = torch.zeros(operation.outputs, dtype=torch.int32)
        self.bias = operation.bias
        self.border = Border(operation) if self.codes.offset else None
        self.held = [self.packed, self.weight_scale, self.zeros]

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        one = scale.numel() == 1
        y = torch.ops.onednn.qconv2d_pointwise(
            self._image(x, scale), float(scale) if one else 1.0, self.codes.zero, self.packed,
            self.weight_scale, self.zeros, self.bias if one else None, *self.walk, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        if not one:
            y *= _each(scale, y)
            if self.bias is not None:
                y += self.bias[:, None, None]
        if x.ndim != 4:
            y = y.view(*x.shape[:-1], y.shape[1])
        return y if self.border is None else self.border.add(y, x.shape)

    def _image(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes as an image; rows that have no position become images of one."""
        image = x.ndim == 4
        codes = _stored(x, scale, self.codes, x.shape[1 if image else -1])
        if not image:
            return codes.view(*codes.shape, 1, 1)
        return codes.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


class Float:
    """A float product of the rounded input: right everywhere, no faster than the float model."""

    name = "float"

    def __init__(self, operation: Operation) -> None:
        self.inputs, self.geometry = operation.inputs, operation.geometry
        self.weight, self.bias = operation.dense_weight(), operation.bias
        self.flat = self.weight.flatten(1) if self.weight.shape[2:] == (1, 1) else None
        self.held = [self.weight]

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        if isinstance(x, Deferred):
            x = x.computed()
        if self.inputs is not None:
            x = _rounded(x, scale, self.inputs)
        if x.ndim != 4:
            assert self.flat is not None
            return F.linear(x, self.flat, self.bias)
        g = self.geometry
        return F.conv2d(x, self.weight, self.bias, g.stride, g.padding, g.dilation, g.groups)


class Border:
    """What an offset o adds to an integer product: ``o s_w sum_{inside} c``, less where the
    kernel reaches into the padding, whose zeros no code stands for.
    """

    def __init__(self, operation: Operation) -> None:
        assert operation.inputs is not None
        self.offset, self.weight = operation.inputs.offset, operation.dense_weight()
        self.channels = operation.weight.shape[1] * operation.geometry.groups
        self.geometry = operation.geometry
        self.known: dict[tuple[int, int], Tensor] = {}

    def add(self, y: Tensor, shape: torch.Size) -> Tensor:
        """y, the product of an input of that shape, with the sum added in place."""
        place = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
        known = self.known.get(place)
        if known is None:
            g = self.geometry
            ones = torch.full((1, self.channels, *place), self.offset)
            known = F.conv2d(ones, self.weight, None, g.stride, g.padding, g.dilation, g.groups)
            self.known[place] = known
        return y.add_(known if y.ndim == 4 else known.flatten())


Maker = Callable[[Operation], Kernel]


def exact_kernels(operation: Operation) -> dict[str, Maker]:
    """Name -> maker of every kernel that computes the operation exactly on this machine."""
    found: dict[str, Maker] = {}
    if operation.integer:
        assert operation.inputs is not None
        groups = operation.geometry.groups
        if not missing():
            for wide in exact_widths(operation.weight, operation.inputs.grid, groups):
                found["int16" if wide else "int8"] = partial(Native, wide=wide)
        if _onednn_is_exact(operation):
            found[OneDnn.name] = OneDnn
    found[Float.name] = Float
    return found


def _onednn_is_exact(operation: Operation) -> bool:
    assert operation.inputs is not None
    if not instructions() or operation.weight.dtype != torch.int8:
        return False  # another architecture, or too many bits
    if operation.inputs.largest > 255:
        return False
    pair = 2 * operation.inputs.largest * operation.largest
    return bool(instructions() & {"vnni", "amx"}) or pair <= 2**15 - 1


def _stored(x: Tensor, scale: Tensor, codes: Codes, row: int) -> Tensor:
    """Codes ``(M, row)`` as they are stored, of what a kernel is called with."""
    if isinstance(x, Deferred):
        return x.codes(codes, scale, row)
    if not missing():
        return codes.of(x, scale, row)
    stored = _steps(x, _each(scale, x), codes).add_(codes.zero).to(codes.dtype)
    return (stored.movedim(1, -1) if x.ndim == 4 else stored).reshape(-1, row)


def _rounded(x: Tensor, scale: Tensor, codes: Codes) -> Tensor:
    """The nearest grid points of x."""
    if not missing():
        return codes.rounded(x, scale)
    each = _each(scale, x)
    return _steps(x, each, codes).mul_(each).add_(codes.offset)


def _steps(x: Tensor, each: Tensor, codes: Codes) -> Tensor:
    """Codes counted from zero, as float32, without the compiled kernels."""
    v = torch.div(x - codes.offset if codes.offset else x, each)
    return v.round_().clamp_(codes.grid.low, codes.grid.high)


def _each(scale: Tensor, x: Tensor) -> Tensor:
    """The scale shaped to broadcast over x, of which it has one for each share of the rows."""
    if scale.numel() == 1:
        return scale.reshape(())
    rows = x.shape[:1] if x.ndim == 4 else x.shape[:-1]
    each = scale.repeat_interleave(rows.numel() // scale.numel())
    return each.reshape(*rows, *[1] * (x.ndim - len(rows)))
