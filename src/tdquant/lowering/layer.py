"""A quantized layer as engines see it: codes, steps and geometry apart from each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer
from tdquant.lowering.operand import INT8_CODES, Operand
from tdquant.quantizers import FrozenWeight
from tdquant.recipe import FLOAT


class LoweredLayer(nn.Module):
    """A quantized layer as the engines see it; a subclass says how codes are multiplied.

    Arguments:
        layer: A frozen quantized layer.
        operand: Its input, or None where that stays in float.
        path: Its path, for errors.
    """

    weight_codes: Tensor
    weight_step: Tensor
    bias: Tensor | None
    sums: Tensor | None

    def __init__(self, layer: QuantLayer, operand: Operand | None, path: str) -> None:
        super().__init__()
        self.operand, self.path = operand, path
        self.kind = type(layer).__name__
        self.convolves = isinstance(layer, (QuantConv1d, QuantConv2d))
        if isinstance(layer, (QuantConv1d, QuantConv2d)):
            self.stride, self.dilation = tuple(layer.stride), tuple(layer.dilation)
            self.groups = layer.groups
            # Of the last dimension first, before and after: what F.pad takes.
            self.padding = [int(n) for n in layer._reversed_padding_repeated_twice]
            self.padding_mode = str(layer.padding_mode)
        frozen = layer.weight_quantizer
        self.bits, self.largest = FLOAT, 0
        if isinstance(frozen, FrozenWeight):
            self.bits = frozen.grid.bits
            codes = layer.weight_codes(path)
            self.largest = int(codes.abs().max())
            steps = frozen.step.reshape(-1, *[1] * (codes.ndim - 1))
            self.register_buffer("weight_step", steps.expand(len(codes), *steps.shape[1:]).clone())
            codes = codes.to(torch.int8) if self.bits <= 8 else codes.float()
        else:
            codes = layer.weight.detach().float()
            self.register_buffer("weight_step", None)
        self.channel = (-1, *[1] * (codes.ndim - 2)) if self.convolves else (-1,)
        self.products = codes[0].numel()  # in one sum
        self.taps = tuple(codes.shape[2:])
        self.register_buffer("weight_codes", codes.contiguous())
        # Models ask ``next(module.parameters())`` and their layers what type to cast to.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        for name in layer.geometry:
            if not hasattr(self, name):
                setattr(self, name, getattr(layer, name))
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        sums = codes.float().sum(1) if self.integer else None
        self.register_buffer("sums", sums)

    @property
    def integer(self) -> bool:
        """Whether both operands have codes that integer kernels take, and 32 bits their sums."""
        if self.bits > 8 or self.operand is None or self.operand.codes > INT8_CODES:
            return False
        return self.products * (self.operand.codes - 1) * self.largest < 2**31

    @property
    def kernel(self) -> tuple[str, str]:
        """What runs the product, and a note, for the layer table."""
        return ("int8", "") if self.integer else ("float", "")

    def float_weight(self) -> Tensor:
        """The weight itself, a constant that an engine multiplies out when it loads the graph."""
        if self.weight_step is None:
            return self.weight_codes
        return self.weight_codes.to(torch.float32) * self.weight_step

    @property
    def weight(self) -> Tensor:
        """The weight itself, for models that read it."""
        return self.float_weight()

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.convolves and self.padding_mode != "zeros":
            x = F.pad(x, self.padding, self.padding_mode)
        if not self.integer:
            x = x if self.operand is None else self.operand(x)
            y = self.combine(x, self.float_weight())
        else:
            y = self.product(x)
            assert self.operand is not None
            if self.operand.offset:
                y = y + self.operand.offset * self.ones_product(x)
        return y if self.bias is None else y + self.bias.reshape(self.channel)

    def product(self, x: Tensor) -> Tensor:
        """``s s_w (q * q_w)`` of an input that is padded already, unless with zeros."""
        raise NotImplementedError

    def ones_product(self, x: Tensor) -> Tensor:
        r"""``s_w (1 * q_w)`` for an input of the size of x: what a code of 1 everywhere adds. At
        the border a convolution sees fewer ones,

            (1 * q_w)_{n i j} = \sum_{k l} R_{i k} T_{n k l} C_{j l}

        with T the codes summed over input channels, and R and C 1 where a tap lies inside.
        """
        assert self.sums is not None
        sums = self.sums * self.weight_step.reshape(-1, *[1] * (self.sums.ndim - 1))
        if not self.convolves:
            return sums
        if not any(self.zeros):
            return sums.flatten(1).sum(1).reshape(self.channel)
        if self.kind == "QuantConv1d":
            return (sums[:, None] * self._inside(x, 0)).sum(-1)
        # Not as products of matrices: OpenVINO 2026.4 fails at those of free sizes.
        rows = (sums[:, :, None] * self._inside(x, 1)).sum(-1)
        return (rows[:, None] * self._inside(x, 0)[..., None]).sum(2)

    def _inside(self, x: Tensor, axis: int) -> Tensor:
        """Which taps of each output lie inside x along a spatial axis, ``(outputs, taps)``."""
        size, taps = x.shape[2 + axis], self.taps[axis]
        after, before = self.zeros[::-1][2 * axis : 2 * axis + 2]
        stride, dilation = self.stride[axis], self.dilation[axis]
        outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
        start = torch.arange(outputs, device=x.device)[:, None] * stride - before
        place = start + torch.arange(taps, device=x.device) * dilation
        return ((place >= 0) & (place < size)).to(torch.float32)

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's product without its bias."""
        return self.convolve(x, weight, self.groups) if self.convolves else F.linear(x, weight)

    def convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The layer's convolution, padded with zeros where it is."""
        padding: Any = self.zeros[1::2][::-1]
        if self.zeros[::2] != self.zeros[1::2]:
            x, padding = F.pad(x, self.zeros), 0
        if self.kind == "QuantConv1d":
            return F.conv1d(x, weight, None, self.stride, padding, self.dilation, groups)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)

    @property
    def zeros(self) -> list[int]:
        """Zeros that the product itself adds around its input, in the order of F.pad."""
        return self.padding if self.padding_mode == "zeros" else [0] * len(self.padding)
