r"""Products of codes on tensor cores.

    acc = sum q_x q_w        codes counted from zero, |q_x| <= A, |q_w| <= W, K terms

    int8    torch._int_mm: int8 operands, int32 sums. Exact while K A W < 2^31.
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
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer

FP8_EXACT = 16
"""float8_e4m3 holds the integers up to here."""
ROWS = 32
"""Fewer rows are filled up: torch._int_mm wants more than 16, and tensor cores tiles."""
MULTIPLE = 16
"""Of columns and of summands, which float8 wants; int8 wants 8."""


@dataclass(frozen=True)
class Geometry:
    """A convolution in two dimensions; one in one dimension has a height of 1.

    Attributes:
        kernel: Height and width of the window; likewise stride and dilation.
        groups: Number of groups.
        pad: Padding as ``F.pad`` takes it.
        mode: How, as ``F.pad`` takes it.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pad: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, layer: QuantLayer) -> Geometry | None:
        """That of a layer; None for a linear one."""
        if not isinstance(layer, (QuantConv1d, QuantConv2d)):
            return None
        pairs = [
            tuple(int(side) for side in sides) for sides in
            (layer.kernel_size, layer.stride, layer.dilation)
        ]  # fmt: skip
        kernel, stride, dilation = ((1, *pair)[-2:] for pair in pairs)
        pad = (*layer._reversed_padding_repeated_twice, 0, 0)[:4]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return cls(kernel, stride, dilation, layer.groups, pad, mode)  # type: ignore[arg-type]

    def padded(self, q: Tensor, zero: float = 0) -> Tensor:
        """``(B, C, H, W)`` with its border; where that is real zero, its code is ``zero``."""
        if not any(self.pad):
            return q
        return F.pad(q, self.pad, self.mode, zero if self.mode == "constant" else None)

    def windows(self, q: Tensor) -> Tensor:
        """Every window of the padded ``(B, C, H, W)`` as a row: ``(B, H', W', kh kw C)``."""
        q = q.permute(0, 2, 3, 1)
        reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        ends = [side - r for side, r in zip(q.shape[1:3], reach, strict=True)]
        (sh, sw), (dh, dw) = self.stride, self.dilation
        parts = [
            q[:, i * dh : i * dh + ends[0] : sh, j * dw : j * dw + ends[1] : sw]
            for i, j in product(*map(range, self.kernel))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class MatrixProduct(nn.Module):
    """``int8`` or ``fp8``: codes ``(*, C) -> (*, N)``, or ``(B, C, H, W) -> (B, N, H', W')``, as
    float32 sums.

    Arguments:
        codes: Weight codes ``(N, C)`` or ``(N, C, kh, kw)``, integers.
        geometry: Of a convolution, with one group; None for a linear layer.
        bounds: Lowest and highest code of the input, counted from zero.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.
    """

    weight: Tensor
    correction: Tensor
    one: Tensor

    def __init__(
        self, codes: Tensor, geometry: Geometry | None, bounds: tuple[int, int], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.geometry, self.dtype = geometry, dtype
        low, high = bounds
        self.shift = max(0, high - 127) + min(0, low + 128) if dtype == torch.int8 else 0
        rows = codes.permute(0, 2, 3, 1).flatten(1) if geometry else codes
        self.outputs, self.summands = rows.shape
        bottom, right = -self.outputs % MULTIPLE, -self.summands % MULTIPLE
        filled = F.pad(rows.to(torch.float32), (0, right, 0, bottom)).to(dtype)
        self.register_buffer("weight", filled.contiguous())
        self.register_buffer("correction", self.shift * rows.sum(1, dtype=torch.int32))
        self.register_buffer("one", torch.ones((), dtype=torch.float32))

    @property
    def name(self) -> str:
        """``int8`` or ``fp8``."""
        return "int8" if self.dtype == torch.int8 else "fp8"

    def forward(self, q: Tensor) -> Tensor:
        geometry = self.geometry
        if geometry and geometry.mode != "constant":
            q = geometry.padded(q)  # torch reflects no bytes
        held = (q - self.shift).to(self.dtype) if self.shift else q.to(self.dtype)
        held = held.view(torch.int8)  # in both types a byte, zero for zero
        if geometry:
            if geometry.mode == "constant":
                held = geometry.padded(held, -self.shift)
            held = geometry.windows(held)
        shape, rows = held.shape[:-1], held.reshape(-1, self.summands)
        count, right = rows.shape[0], -self.summands % MULTIPLE
        bottom = ROWS - count if count < ROWS else 0
        if right or bottom:
            rows = F.pad(rows, (0, right, 0, bottom))
        sums = self._product(rows.contiguous())[:count, : self.outputs]
        if self.shift:
            sums = sums + self.correction
        y = sums.float().reshape(*shape, self.outputs)
        y = y.permute(0, 3, 1, 2) if geometry else y
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
    """``codes``: torch's own linear or convolution, ``(*, C)`` or ``(B, C, H, W)``, on codes.

    Arguments:
        codes: Weight codes ``(N, C)`` or ``(N, C / groups, kh, kw)``, integers.
        geometry: Of a convolution; None for a linear layer.
        bound: Largest ``|acc|`` that can be.
        dtype: Floating type of the operands.
    """

    weight: Tensor

    def __init__(
        self, codes: Tensor, geometry: Geometry | None, bound: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.geometry = geometry
        # float16 ends at 65504. A power of two changes no digit.
        self.shrink = 2 ** max(0, math.ceil(math.log2(max(bound, 1))) - 15)
        weight = codes.to(torch.float32) / self.shrink
        if geometry:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight.to(dtype))

    @property
    def name(self) -> str:
        """Such as ``float32 codes``."""
        return f"{str(self.weight.dtype).removeprefix('torch.')} codes"

    def forward(self, q: Tensor) -> Tensor:
        q, geometry = q.to(self.weight.dtype), self.geometry
        if geometry is None:
            return F.linear(q, self.weight).float() * self.shrink
        q = geometry.padded(q).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(
            q, self.weight, None, geometry.stride, 0, geometry.dilation, geometry.groups
        )  # fmt: skip
        return y.float() * self.shrink
