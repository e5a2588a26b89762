"""A quantized layer in a graph of another engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.layers import QuantLayer
from tdquant.lowering import labels
from tdquant.lowering.operand import Operand
from tdquant.lowering.operation import Operation, along_rows


class LoweredLayer(nn.Module):
    """A quantized layer as engines see it; a subclass says how codes are multiplied.

    Arguments:
        layer: A frozen quantized layer.
        operand: Its input, or None where that stays in float.
        path: Its path, for errors.

    Attributes:
        reason: Why the product is none of 8-bit codes with sums of 32 bits, or empty.
        walk: Its geometry; ``inner``, that behind a border other than of zeros.
        groups_of_weight: Multipliers that the codes have in, if any.
    """

    weight_codes: Tensor
    weight_step: Tensor | None
    bias: Tensor | None
    sums: Tensor | None

    def __init__(self, layer: QuantLayer, operand: Operand | None, path: str) -> None:
        super().__init__()
        operation = Operation.of(layer, path)
        self.operand, self.reason = operand, operation.int32_reason
        self.walk, self.inner = operation.geometry, operation.geometry.inner
        self.taps, self.saturates = operation.taps, operation.saturates
        self.groups_of_weight = operation.groups
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))
        codes, step = operation.weight, None
        if operation.step is not None:
            step = along_rows(operation.channel_steps().clone(), codes)
        held = codes if codes.dtype == torch.int8 else codes.float()
        self.register_buffer("weight_codes", held.contiguous())
        self.register_buffer("weight_step", step)
        self.register_buffer("bias", None if operation.bias is None else operation.bias.clone())
        self.register_buffer("sums", None if self.reason else codes.float().sum(1))
        # Models ask ``next(module.parameters())`` and their layers what type to cast to.
        self.like = nn.Parameter(torch.empty(0, dtype=torch.float32), requires_grad=False)

    @property
    def kernel(self) -> tuple[str, str]:
        """What runs the product, and a note, for the layer table."""
        return (labels.FLOAT, self.reason) if self.reason else (labels.INT8, "")

    @property
    def weight(self) -> Tensor:
        """The weight itself, a constant that an engine multiplies out when it loads the graph;
        models read it, too.
        """
        if self.weight_step is None:
            return self.weight_codes
        return self.weight_codes.to(torch.float32) * self.weight_step

    def forward(self, input: Tensor) -> Tensor:
        x = self.walk.wrapped(input)
        if self.reason or self.operand is None:
            y = self.inner.convolve(x if self.operand is None else self.operand(x), self.weight)
        else:
            y = self.product(x, self.operand)
            if self.operand.codes.offset:
                y = y + self.operand.codes.offset * self.ones_product(x)
        return y if self.bias is None else y + self.bias.reshape(self.walk.channel)

    def product(self, x: Tensor, operand: Operand) -> Tensor:
        """``s s_w (q * q_w)`` of an input that is padded already, unless with zeros."""
        raise NotImplementedError

    def ones_product(self, x: Tensor) -> Tensor:
        r"""``s_w (1 * q_w)`` for an input of the size of x: what a code of 1 everywhere adds. At
        the border a convolution sees fewer ones, in two dimensions

            (1 * q_w)_{n i j} = \sum_{k l} R_{i k} T_{n k l} C_{j l}

        with T the codes summed over input channels, and R and C 1 where a tap lies inside. Written
        out, it is a function of the sizes alone, which engines compute once.
        """
        assert self.sums is not None
        assert self.weight_step is not None
        sums = self.sums * along_rows(self.weight_step.flatten(), self.sums)
        if not self.walk.dims:
            return sums
        if not any(self.walk.zeros):
            return sums.flatten(1).sum(1).reshape(self.walk.channel)
        # Not as products of matrices: OpenVINO 2026.4 fails at those of free sizes.
        for axis in reversed(range(self.walk.dims)):
            inside = self._inside(x, axis)[(..., *[None] * (self.walk.dims - 1 - axis))]
            sums = (sums.unsqueeze(1 + axis) * inside).sum(2 + axis)
        return sums

    def _inside(self, x: Tensor, axis: int) -> Tensor:
        """Which taps of each output lie inside x along a spatial axis, ``(outputs, taps)``."""
        size, taps = x.shape[2 + axis], self.taps[axis]
        after, before = self.walk.zeros[::-1][2 * axis : 2 * axis + 2]
        stride, dilation = self.walk.stride[axis], self.walk.dilation[axis]
        outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
        start = torch.arange(outputs, device=x.device)[:, None] * stride - before
        place = start + torch.arange(taps, device=x.device) * dilation
        return ((place >= 0) & (place < size)).to(torch.float32)
