"""What a quantized layer computes, for every kernel: codes, scales and geometry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer

MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation (height, width) and groups of a two-dimensional convolution; the
    default is that of a linear layer.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Codes:
    """Codes of an input: ``q = clip(round((x - o) / s), low, high)``, stored as ``q + zero``.

    Attributes:
        grid: Range of the codes.
        offset: The real number o of code 0.
    """

    grid: Grid
    offset: float = 0.0

    @property
    def zero(self) -> int:
        """The stored code of ``q = 0``."""
        return -self.grid.low

    @property
    def largest(self) -> int:
        """The largest stored code; the smallest is 0."""
        return self.grid.high - self.grid.low

    def steps(self, x: Tensor, scale: Tensor) -> Tensor:
        """``q`` of float32 x as float32, a new tensor; NaN stays NaN. The scale broadcasts."""
        v = torch.div(x - self.offset if self.offset else x, scale)
        return v.round_().clamp_(self.grid.low, self.grid.high)


@dataclass(frozen=True)
class Operation:
    """A frozen layer as a two-dimensional convolution; a linear layer has one position, a
    one-dimensional convolution a height of 1.

    Attributes:
        weight: Codes ``(N, C / groups, kh, kw)`` int8 or int16, or float weights.
        weight_scale: ``(N,)`` or ``()``; None for float weights.
        bias: ``(N,)`` or None.
        inputs: How inputs are coded; None for float inputs.
        geometry: Of the convolution.
        pad: Padding done ahead of the convolution, as ``F.pad`` takes it; None if the geometry
            holds it.
    """

    weight: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None
    inputs: Codes | None
    geometry: Geometry
    pad: tuple[tuple[int, ...], str] | None = None

    @classmethod
    def of(cls, layer: QuantLayer, path: str) -> Operation:
        """The operation of a frozen layer.

        Raises:
            FreezeError: Its weight is off its grid.
        """
        scale = None
        if isinstance(layer.weight_quantizer, FrozenWeight):
            quantizer = layer.weight_quantizer
            weight = layer.weight_codes(path).to(code_dtype(quantizer.grid.bits))
            scale = quantizer.step.detach().float()
        else:
            weight = layer.weight.detach()
        geometry, pad = Geometry(), None
        if isinstance(layer, (QuantConv1d, QuantConv2d)):
            geometry, pad = _walk(layer)
        while weight.ndim < 4:  # (N, C) and (N, C, k) lack a height
            weight = weight.unsqueeze(2)
        bias = None if layer.bias is None else layer.bias.detach().float()
        return cls(weight, scale, bias, _codes(layer.input_quantizer), geometry, pad)

    @property
    def is_matrix(self) -> bool:
        """Whether every output position sees one input position: a product of matrices."""
        return self.weight.shape[2:] == (1, 1) and self.geometry == Geometry()

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.weight.shape[0]

    @cached_property
    def largest(self) -> int:
        """Largest magnitude of a weight code."""
        return max(-int(self.weight.min()), int(self.weight.max())) if self.weight.numel() else 0

    def largest_sum(self) -> int:
        """An upper bound of the sum of the magnitudes of one output's weight codes."""
        bound = self.largest * self.weight[:1].numel()
        if bound < 2**23:  # fits 32 bits with any 8-bit input
            return bound
        return int(self.weight.flatten(1).int().abs().sum(1).max())

    def dense_weight(self) -> Tensor:
        """The weight in float32, channels last."""
        weight = self.weight.to(torch.float32, memory_format=torch.channels_last)
        scale = self.weight_scale
        if scale is None:
            return weight
        return weight.mul_(scale.reshape(-1, 1, 1, 1) if scale.ndim else scale)  # codes: a copy

    def signature(self) -> tuple[object, ...]:
        """Equal for layers that run equally fast on equal inputs."""
        largest = self.largest if self.weight_scale is not None else None
        return (tuple(self.weight.shape), largest, self.inputs, self.geometry, self.pad)


def _codes(quantizer: nn.Module) -> Codes | None:
    if not isinstance(quantizer, ActivationQuantizer):
        return None
    offset = quantizer.offset if isinstance(quantizer, OffsetQuantizer) else 0.0
    return Codes(quantizer.grid, offset=offset)


def _walk(layer: QuantConv1d | QuantConv2d) -> tuple[Geometry, tuple[tuple[int, ...], str] | None]:
    """Geometry of a convolution; padding that is uneven or not of zeros is done ahead of it."""
    sides = tuple(layer._reversed_padding_repeated_twice)  # last dimension first, both ends
    even = sides[0::2] == sides[1::2]

    def two(values: tuple[int, ...], fill: int) -> tuple[int, int]:
        a, b = (fill, *values) if len(values) == 1 else values
        return a, b

    ahead = layer.padding_mode != "zeros" or not even
    padding = (0, 0) if ahead else two(sides[0::2][::-1], 0)
    geometry = Geometry(two(layer.stride, 1), padding, two(layer.dilation, 1), layer.groups)
    return geometry, (sides, MODES[layer.padding_mode]) if ahead else None
