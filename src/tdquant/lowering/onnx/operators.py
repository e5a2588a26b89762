"""The operations of a lowered graph that have no name in PyTorch, and what they are in ONNX.

    quantize      QuantizeLinear at unit scale
    dequantize    DequantizeLinear
    patches       Pad, Transpose, Slice, Concat: what each output of a convolution sees

Each is a custom operation, so that tracing keeps it whole; what it computes here is what the
translated nodes compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdquant.lowering.geometry import Geometry, window_slices
from tdquant.lowering.operation import INT8_CODES
from tdquant.support.optional import require

OPSET = 21
"""Version of ONNX's operators: the first with int4."""

END = 2**63 - 1
"""The end of an axis, to ONNX's Slice."""

UINT8 = 2
"""ONNX's number of the type."""


@torch.library.custom_op("tdquant::quantize", mutates_args=())
def quantize(x: Tensor, zero: Tensor) -> Tensor:
    """``clip(round(x) + z, 0, 255)`` as uint8, of what was divided by its step, z ``()``."""
    return (x.round() + zero).clamp(0, INT8_CODES - 1).to(torch.uint8)


@quantize.register_fake
def _(x: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@torch.library.custom_op("tdquant::dequantize", mutates_args=())
def dequantize(q: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """``s (q - z)``, with s and z ``()``, or ``(n,)`` along the last axis."""
    return (q.float() - zero.float()) * step


@dequantize.register_fake
def _(q: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("tdquant::patches", mutates_args=())
def patches(
    q: Tensor,
    taps: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    zero: int,
) -> Tensor:
    """What each output of a convolution sees, ``(B, C, *) -> (B, *', taps C)``; ``padding`` as
    F.pad takes it, with the code ``zero``.
    """
    geometry = Geometry(tuple(stride), tuple(dilation), 1, tuple(padding))
    return geometry.windows(geometry.padded(q, zero), taps).clone()  # no view of an input


@patches.register_fake
def _(
    q: Tensor,
    taps: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    zero: int,
) -> Tensor:
    count = len(taps)
    sizes = [
        (q.shape[2 + i] + sum(padding[-2 * (i + 1) :][:2]) - dilation[i] * (taps[i] - 1) - 1)
        // stride[i]
        + 1
        for i in range(count)
    ]
    return q.new_empty(q.shape[0], *sizes, q.shape[1] * math.prod(taps))


def translations() -> dict[Any, Any]:
    """Our operations in ONNX's: what torch's exporter is given."""
    op = getattr(require("onnxscript", "onnx"), f"opset{OPSET}")

    def quantize_linear(x: Any, zero: Any) -> Any:
        return op.QuantizeLinear(x, op.Constant(value_float=1.0), zero)

    def dequantize_linear(q: Any, step: Any, zero: Any) -> Any:
        return op.DequantizeLinear(q, step, zero, axis=-1)

    def windows(q: Any, taps: Any, stride: Any, dilation: Any, padding: Any, zero: int) -> Any:
        axes = list(range(1, len(taps) + 1))
        if any(padding):
            ends = [padding[i : i + 2] for i in range(len(padding) - 2, -1, -2)]
            pads = [0, 0, *(e[0] for e in ends), 0, 0, *(e[1] for e in ends)]
            q = op.Pad(q, op.Constant(value_ints=pads), op.Cast(zero, to=UINT8))
        q = op.Transpose(q, perm=[0, *(axis + 1 for axis in axes), 1])
        parts = []
        for ranges in window_slices(taps, stride, dilation):
            starts, stops, steps = zip(*ranges, strict=True)
            last = [END if stop is None else stop for stop in stops]
            bounds = (op.Constant(value_ints=list(v)) for v in (starts, last, axes, steps))
            whole = all(part == (0, None, 1) for part in ranges)
            parts.append(q if whole else op.Slice(q, *bounds))
        return op.Concat(*parts, axis=-1) if len(parts) > 1 else parts[0]

    def group_norm(
        x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Any:
        # torch's own translation takes it apart where height and width are free.
        ones, zeros = (op.Constant(value_floats=[v] * groups) for v in (1.0, 0.0))
        rows = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
        y = op.InstanceNormalization(rows, ones, zeros, epsilon=eps)
        y = op.Reshape(y, op.Shape(x))
        if weight is None:
            return y
        shape = op.Constant(value_ints=[-1] + [1] * (len(x.shape) - 2))
        return op.Add(op.Mul(y, op.Reshape(weight, shape)), op.Reshape(bias, shape))

    def conv3d(
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Sequence[int] = (1,) * 3,
        padding: Sequence[int] = (0,) * 3,
        dilation: Sequence[int] = (1,) * 3,
        groups: int = 1,
    ) -> Any:
        # torch's own translation gives one without bias a bias of two dimensions.
        return op.Conv(
            x,
            weight,
            bias,
            strides=list(stride),
            pads=[*padding, *padding],
            dilations=list(dilation),
            group=groups,
        )

    def repeat_interleave(x: Any, repeats: Any, dim: int | None = None, **_: Any) -> Any:
        # torch's own translation expands to the sizes of the example.
        rank = len(x.shape)
        if dim is None:
            x, dim, rank = op.Reshape(x, op.Constant(value_ints=[-1])), 0, 1
        dim %= rank
        times = repeats if not isinstance(repeats, int) else op.Constant(value_ints=[repeats])
        each = [
            op.Constant(value_ints=[1] * (dim + 1)),
            op.Reshape(times, op.Constant(value_ints=[1])),
        ]
        if dim + 1 < rank:
            each.append(op.Constant(value_ints=[1] * (rank - dim - 1)))
        y = op.Tile(op.Unsqueeze(x, op.Constant(value_ints=[dim + 1])), op.Concat(*each, axis=0))
        shape = op.Shape(x, end=dim), op.Constant(value_ints=[-1]), op.Shape(x, start=dim + 1)
        return op.Reshape(y, op.Concat(*shape, axis=0))

    names = torch.ops.tdquant
    return {
        torch.ops.aten.conv3d.default: conv3d,
        torch.ops.aten.group_norm.default: group_norm,
        torch.ops.aten.repeat_interleave.self_int: repeat_interleave,
        names.quantize.default: quantize_linear,
        names.dequantize.default: dequantize_linear,
        names.patches.default: windows,
    }
