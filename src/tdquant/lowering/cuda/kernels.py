r"""Products of codes on tensor cores.

    acc = sum q_x q_w        codes counted from zero, |q_x| <= A, |q_w| <= W, K terms

int8    torch._int_mm: int8 operands, int32 sums.
fp8     torch._scaled_mm: float8_e4m3 has four significant bits and holds every integer up to
        16. Exact as long as the tensor core's sums are, which some devices cut to 14 bits.
codes   torch's own product with codes in floating point. float32 on TF32 tensor cores keeps
        11 bits of an operand, bfloat16 8: all codes of 8 bits. The sum is exact below 2^24
        and rounded as any float32 beyond; the result is rounded to the type of the operands.

int8 and fp8 are matrix products; a convolution gathers its windows for them. Eight-bit affine
codes, -255 to 255, are shifted by c to fit int8: ``sum (q - c) q_w + c sum q_w``.

References:
    Micikevicius et al., FP8 Formats for Deep Learning, 2022 (https://arxiv.org/abs/2209.05433).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.lowering import labels
from tdquant.lowering.operation import Operation

FP8_EXACT = 16
"""float8_e4m3 holds the integers up to here."""
ROWS = 32
"""Fewer rows are filled up: torch._int_mm wants more than 16, and tensor cores tiles."""
MULTIPLE = 16
"""Of columns and of summands, which float8 wants; int8 wants 8."""


class MatrixProduct(nn.Module):
    """``int8`` or ``fp8``: codes ``(*, C) -> (*, N)``, or ``(B, C, *) -> (B, N, *')``, as float32
    sums.

    Arguments:
        operation: A product of 8-bit codes, of one group.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.
    """

    weight: Tensor
    correction: Tensor
    one: Tensor

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        super().__init__()
        assert operation.inputs is not None
        self.geometry, self.inner = operation.geometry, operation.geometry.inner
        self.taps, self.dtype = operation.taps, dtype
        low, high = operation.inputs.low, operation.inputs.high
        self.shift = max(0, high - 127) + min(0, low + 128) if dtype == torch.int8 else 0
        rows = operation.weight.movedim(1, -1).flatten(1)
        self.outputs, self.summands = rows.shape
        bottom, right = -self.outputs % MULTIPLE, -self.summands % MULTIPLE
        filled = F.pad(rows.to(torch.float32), (0, right, 0, bottom)).to(dtype)
        self.register_buffer("weight", filled.contiguous())
        self.register_buffer("correction", self.shift * rows.sum(1, dtype=torch.int32))
        self.register_buffer("one", torch.ones((), dtype=torch.float32))

    @property
    def name(self) -> str:
        """``int8`` or ``fp8``."""
        return labels.INT8 if self.dtype == torch.int8 else labels.FP8

    def forward(self, q: Tensor) -> Tensor:
        geometry = self.geometry
        wrapped = geometry.wrapped(q)  # torch reflects no bytes
        held = (wrapped - self.shift).to(self.dtype) if self.shift else wrapped.to(self.dtype)
        held = held.view(torch.int8)  # in both types a byte, zero for zero
        held = geometry.windows(self.inner.padded(held, -self.shift), self.taps)
        shape, rows = held.shape[:-1], held.reshape(-1, self.summands)
        count, right = rows.shape[0], -self.summands % MULTIPLE
        bottom = ROWS - count if count < ROWS else 0
        if right or bottom:
            rows = F.pad(rows, (0, right, 0, bottom))
        sums = self._product(rows.contiguous())[:count, : self.outputs]
        if self.shift:
            sums = sums + self.correction
        y = sums.float().reshape(*shape, self.outputs)
        y = y.movedim(-1, 1) if geometry.dims else y
        if self.dtype == torch.int8:  # which has no NaN: one of the input marks its sample
            y = y + 0 * q.sum(tuple(range(1, q.ndim)), keepdim=True)
        return y

    def _product(self, rows: Tensor) -> Tensor:
        weight = self.weight.t()
        if self.dtype == torch.int8:
            return torch._int_mm(rows, weight)
        one = self.one
        return torch._scaled_mm(rows.view(self.dtype), weight, one, one, out_dtype=torch.float32)


class FloatProduct(nn.Module):
    """``codes``: torch's own linear layer or convolution on codes.

    Arguments:
        operation: A product of 8-bit codes.
        dtype: Floating type of the operands.
    """

    weight: Tensor

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        super().__init__()
        assert operation.inputs is not None
        self.geometry, self.inner = operation.geometry, operation.geometry.inner
        bound = operation.inputs.largest * operation.largest_sum
        # float16 ends at 65504. A power of two changes no digit.
        self.shrink = 2 ** max(0, math.ceil(math.log2(max(bound, 1))) - 15)
        weight = operation.weight.to(torch.float32) / self.shrink
        self.register_buffer("weight", self._last(weight).to(dtype))

    @property
    def name(self) -> str:
        """Such as ``float32 codes``."""
        return f"{str(self.weight.dtype).removeprefix('torch.')} codes"

    def forward(self, q: Tensor) -> Tensor:
        q = self._last(self.geometry.wrapped(q.to(self.weight.dtype)))
        return self.inner.convolve(q, self.weight).float() * self.shrink

    def _last(self, x: Tensor) -> Tensor:
        """Images with their channels last in memory."""
        image = self.geometry.dims == 2
        return x.contiguous(memory_format=torch.channels_last) if image else x
