r"""Ways to compute an operation on the CPU. Each equals the frozen layer up to float32 rounding.

    y = s_x s_w sum (q_x - z) q_w + o s_w sum_{inside} q_w + b

    int8 onednn    torch's oneDNN operators: uint8 codes of the input, int8 codes of the weight
    float          rounded inputs and a float product

A NaN of the input has no code. It makes the scale NaN, and so every output of the call, or of the
sample where samples have scales of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.errors import BackendError
from tdquant.lowering.operation import Operation
from tdquant.support.machine import instructions

_INT16, _INT32 = 2**15 - 1, 2**31 - 1


class Kernel(Protocol):
    """``kernel(x, scale) -> y``: float32 images ``(B, C, H, W)``, channels last, or, for an
    operation of one position, contiguous ``(*, C)``; and the scale of x, ``()`` or ``(k,)``, each
    for an equal share of the rows.

    Attributes:
        name: What the summary calls it.
        packed_tensors: The tensors that it keeps.
    """

    name: str
    packed_tensors: list[Tensor]

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor: ...


class NotPickled:
    """Base of what a compiled model consists of, and a saved one must not."""

    def __reduce__(self) -> Any:
        raise BackendError(
            "a compiled model cannot be pickled",
            where="onednn",
            why="its weights are packed for this processor",
            fix="tdq.save the frozen model, and compile it where it is to run",
        )


class OneDnn(NotPickled):
    """oneDNN's 8-bit product through torch: of matrices where the window is one position, else a
    convolution.

    Arguments:
        operation: Without ``obstacle``.
        shape: Of a typical input, for which the weight is packed.
    """

    name = "int8 onednn"

    def __init__(self, operation: Operation, shape: torch.Size) -> None:
        assert operation.inputs is not None
        assert operation.weight_scale is not None
        self.codes, g = operation.inputs, operation.geometry
        self.walk = (list(g.stride), list(g.padding), list(g.dilation), g.groups)
        self.matrix, self.bias = operation.is_matrix, operation.bias
        self.weight_scale = operation.weight_scale.expand(operation.outputs).contiguous()
        if self.matrix:
            self.packed = torch.ops.onednn.qlinear_prepack(operation.weight.flatten(1), None)
        else:
            self.packed = torch.ops.onednn.qconv_prepack(
                operation.weight, self.weight_scale, 1.0, self.codes.zero, *self.walk, list(shape)
            )
        self.zeros = torch.zeros(operation.outputs, dtype=torch.int32)
        self.border = Border(operation) if self.codes.offset else None
        self.packed_tensors = [self.packed, self.weight_scale, self.zeros]

    def __deepcopy__(self, memo: dict[int, object]) -> OneDnn:
        return self  # nothing in it changes, and packed tensors cannot be copied

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        steps = self.codes.steps(x, per_row(scale, x))
        one = scale.numel() == 1
        scale = scale + _nan_or_zero(steps, scale.numel())
        stored = (steps.add_(self.codes.zero) if self.codes.zero else steps).to(torch.uint8)
        y = self._product(stored, float(scale) if one else 1.0, self.bias if one else None)
        if not one:
            y *= per_row(scale, y)
            if self.bias is not None:
                y += self.bias.reshape(-1, 1, 1) if y.ndim == 4 else self.bias
        return y if self.border is None else self.border.add(y, x.shape)

    def _product(self, q: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        rest: tuple[Any, ...] = (
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )  # float32 results, nothing fused behind
        image = q.ndim == 4
        codes = (self.packed, self.weight_scale, self.zeros)
        if not self.matrix:
            return torch.ops.onednn.qconv2d_pointwise(
                q, scale, self.codes.zero, *codes, bias, *self.walk, *rest
            )
        rows = q.permute(0, 2, 3, 1) if image else q
        y = torch.ops.onednn.qlinear_pointwise(
            rows.reshape(-1, rows.shape[-1]), scale, self.codes.zero, *codes, bias, *rest
        ).view(*rows.shape[:-1], len(self.zeros))
        return y.permute(0, 3, 1, 2) if image else y


class Float:
    """A float product of the rounded input: right everywhere, no faster than the float model."""

    name = "float"

    def __init__(self, operation: Operation, shape: torch.Size | None = None) -> None:
        self.inputs, self.geometry, self.bias = (
            operation.inputs,
            operation.geometry,
            operation.bias,
        )
        self.weight = operation.dense_weight()
        self.packed_tensors = [self.weight]

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        if self.inputs is not None:
            each = per_row(scale, x)
            x = self.inputs.steps(x, each).mul_(each)
            x = x.add_(self.inputs.offset) if self.inputs.offset else x
        if x.ndim != 4:
            return F.linear(x, self.weight.flatten(1), self.bias)
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


Maker = Callable[[Operation, torch.Size], Kernel]


def exact_kernels(operation: Operation) -> dict[str, Maker]:
    """Name -> maker of every kernel that computes the operation exactly on this machine."""
    found: dict[str, Maker] = {} if obstacle(operation) else {OneDnn.name: OneDnn}
    return {**found, Float.name: Float}


def obstacle(operation: Operation) -> str:
    """Why oneDNN's product of codes is not exact for an operation on this machine, or empty."""
    inputs, weight = operation.inputs, operation.weight
    if inputs is None or operation.weight_scale is None:
        return "one operand is float"
    if inputs.largest > 255 or weight.dtype != torch.int8:
        return "codes of more than 8 bits"
    if not instructions() or not torch.backends.mkldnn.is_available():
        return "oneDNN has no int8 operators here"
    pair = 2 * inputs.largest * operation.largest
    if pair > _INT16 and not instructions() & {"vnni", "amx"}:
        return "without VNNI, sums of two products of 8-bit codes saturate"
    if inputs.largest * operation.largest_sum() > _INT32:
        return "sums of its products do not fit 32 bits"
    return ""


def _nan_or_zero(steps: Tensor, scales: int) -> Tensor:
    """NaN for every one of the scales in whose share of the rows there is a NaN, else 0; () for
    one scale.
    """
    if scales == 1:
        return 0 * steps.sum()
    sums = steps.sum((1, 2, 3) if steps.ndim == 4 else -1)
    return 0 * sums.reshape(scales, -1).sum(1)


def per_row(scale: Tensor, x: Tensor) -> Tensor:
    """The scale shaped to broadcast over x, of which it has one for each share of the rows."""
    if scale.numel() == 1:
        return scale.reshape(())
    rows = x.shape[:1] if x.ndim == 4 else x.shape[:-1]
    each = scale.repeat_interleave(rows.numel() // scale.numel())
    return each.reshape(*rows, *[1] * (x.ndim - len(rows)))
