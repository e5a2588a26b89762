r"""What a layer of a frozen model computes: codes, steps, geometry and bounds. Every engine and
exporter starts from it.

    q = clip(round((x - o) / s), low, high)                    codes of the input
    y = s s_w sum q q_w + o s_w sum_{inside} q_w + b

Codes are counted from zero. o is the real number of code 0: zero except on published grids, where
no code stands for the zeros that a convolution pads with, and the second sum leaves these out.

    A = high - low,    W = max |q_w|
    A max_n sum |q_w|  < 2^31       sums fit 32 bits, whatever code the engine counts from
    2 A W              < 2^15       x86 kernels without VNNI, which add pairs of products of uint8
                                    with int8 in int16, do not saturate
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer
from tdquant.lowering import labels
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer

INT8_CODES = 256
"""Codes that an 8-bit operand can tell apart."""


@dataclass(frozen=True)
class Codes:
    """Codes of an activation: ``q = clip(round((x - o) / s), low, high)``.

    Attributes:
        grid: Range of the codes.
        offset: The real number o of code 0.
    """

    grid: Grid
    offset: float = 0.0

    @classmethod
    def of(cls, quantizer: nn.Module) -> Codes | None:
        """Codes of a quantizer; None if it leaves its input in float."""
        if not isinstance(quantizer, ActivationQuantizer):
            return None
        return cls(
            quantizer.grid, quantizer.offset if isinstance(quantizer, OffsetQuantizer) else 0.0
        )

    @property
    def low(self) -> int:
        """Lowest code, at most 0; as an unsigned integer, code 0 is stored as ``-low``."""
        return self.grid.low

    @property
    def high(self) -> int:
        """Highest code, at least 0."""
        return self.grid.high

    @property
    def span(self) -> int:
        """A, the distance of the highest from the lowest code."""
        return self.high - self.low

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return max(self.high, -self.low)

    @property
    def narrow(self) -> bool:
        """Whether 8 bits hold the codes."""
        return self.span < INT8_CODES

    def ratio(self, x: Tensor, step: Tensor) -> Tensor:
        """``(x - o) / s``: what is rounded. The step broadcasts over x."""
        return torch.div(x - self.offset if self.offset else x, step)

    def quantize(self, x: Tensor, step: Tensor) -> Tensor:
        """The codes of float32 x as float32, a new tensor; NaN stays NaN."""
        return self.ratio(x, step).round_().clamp_(self.low, self.high)


@dataclass(frozen=True)
class Geometry:
    """How windows of a convolution lie; without dimensions, a product over the last axis.

    Attributes:
        stride: One number for each spatial dimension, as of dilation.
        dilation: Distance of neighbouring taps.
        groups: Number of groups.
        padding: As ``F.pad`` takes it: of the last dimension first, before and after.
        mode: As ``F.pad`` takes it.
    """

    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding: tuple[int, ...] = ()
    mode: str = "constant"

    @classmethod
    def of(cls, layer: QuantLayer) -> Geometry:
        """Geometry of a layer."""
        if not isinstance(layer, (QuantConv1d, QuantConv2d)):
            return cls()
        return cls(
            tuple(layer.stride),
            tuple(layer.dilation),
            layer.groups,
            tuple(int(n) for n in layer._reversed_padding_repeated_twice),
            "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def channel(self) -> tuple[int, ...]:
        """Shape of one number for each channel that broadcasts over outputs."""
        return (-1, *[1] * self.dims)

    @property
    def zeros(self) -> tuple[int, ...]:
        """The zeros that are padded, as ``padding``; none in other modes."""
        return self.padding if self.mode == "constant" else (0,) * len(self.padding)

    @property
    def even(self) -> tuple[int, ...] | None:
        """Zeros on either side of each dimension, the first dimension first; None if the two sides
        differ.
        """
        before, after = self.zeros[0::2], self.zeros[1::2]
        return after[::-1] if before == after else None

    def lifted(self) -> Geometry:
        """The same in two dimensions."""
        ones = (1,) * (2 - self.dims)
        nothing = (0,) * (2 * len(ones))
        return replace(
            self,
            stride=ones + self.stride,
            dilation=ones + self.dilation,
            padding=self.padding + nothing,
        )

    def padded(self, x: Tensor, value: float = 0) -> Tensor:
        """``(B, C, *)`` with its border, in which ``value`` stands for zero."""
        if not any(self.padding):
            return x
        return F.pad(x, self.padding, self.mode, value if self.mode == "constant" else None)

    def wrapped(self, x: Tensor) -> Tensor:
        """``(B, C, *)`` with its border if that is not of zeros."""
        return x if self.mode == "constant" else self.padded(x)

    @property
    def inner(self) -> Geometry:
        """What is left to do for ``wrapped``."""
        return replace(self, padding=self.zeros, mode="constant")

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int | None = None
    ) -> Tensor:
        """The product by PyTorch: ``(*, C) -> (*, N)`` or ``(B, C, *) -> (B, N, *')``."""
        if not self.dims:
            return F.linear(x, weight, bias)
        convolution = F.conv1d if self.dims == 1 else F.conv2d
        sides = self.even
        if self.mode != "constant" or sides is None:
            x, sides = self.padded(x), (0,) * self.dims
        groups = self.groups if groups is None else groups
        return convolution(x, weight, bias, self.stride, sides, self.dilation, groups)

    def windows(self, x: Tensor, taps: Sequence[int]) -> Tensor:
        """What each output sees of a padded input, ``(B, C, *) -> (B, *', taps C)``."""
        x = x.movedim(1, -1) if self.dims else x
        parts = []
        for slices in window_slices(taps, self.stride, self.dilation):
            part = x
            for axis, window in enumerate(slices):
                part = part[(slice(None),) * (axis + 1) + (slice(*window),)]
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def ones_product(self, x: Tensor, sums: Tensor) -> Tensor:
        """``sum_{inside} q_w`` for an input of the size of x, in its type: what a code of 1
        everywhere adds, less where windows hold zeros that were padded.

        Arguments:
            x: Input ``(B, C, *)``, not padded.
            sums: Weight codes ``(N, *k)``, summed over input channels.

        Returns:
            ``(N,)``, ``(N, 1, ..)``, or ``(1, N, *')`` where zeros are padded.
        """
        if not any(self.zeros):
            return sums.to(x.dtype).reshape(len(sums), -1).sum(1).reshape(self.channel)
        ones = torch.ones_like(x[:1, :1])
        return self.convolve(ones, sums.to(x.dtype).unsqueeze(1), groups=1)


def window_slices(
    taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[list[tuple[int, int | None, int]]]:
    """Start, stop and step along each axis of what one tap sees, tap by tap."""
    for place in itertools.product(*map(range, taps)):
        yield [
            (i * d, -(n - 1 - i) * d or None, s)
            for i, n, s, d in zip(place, taps, stride, dilation, strict=True)
        ]


@dataclass(frozen=True)
class Operation:
    """A frozen layer.

    Attributes:
        weight: Codes ``(N, C / groups, *k)``, int8 or int16, or float weights.
        step: Of the weight, ``(N,)`` or ``()``; None for float weights.
        bias: ``(N,)`` or None.
        inputs: Codes of the input; None for float inputs.
        geometry: How windows lie.
    """

    weight: Tensor
    step: Tensor | None
    bias: Tensor | None
    inputs: Codes | None
    geometry: Geometry = Geometry()

    @classmethod
    def of(cls, layer: QuantLayer, path: str) -> Operation:
        """The operation of a frozen layer.

        Arguments:
            layer: The layer.
            path: Its path, for errors.

        Raises:
            FreezeError: Its weight is off its grid.
        """
        quantizer, step = layer.weight_quantizer, None
        if isinstance(quantizer, FrozenWeight):
            weight = layer.weight_codes(path).to(code_dtype(quantizer.grid.bits))
            step = quantizer.step.detach().float()
        else:
            weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach().float()
        return cls(weight, step, bias, Codes.of(layer.input_quantizer), Geometry.of(layer))

    @property
    def outputs(self) -> int:
        """N, the channels of the output."""
        return self.weight.shape[0]

    @property
    def taps(self) -> tuple[int, ...]:
        """Size of the window."""
        return tuple(self.weight.shape[2:])

    @property
    def is_matrix(self) -> bool:
        """Whether every output position sees one input position: a product of matrices."""
        g = self.geometry
        steps = {*self.taps, *g.stride, *g.dilation, g.groups}
        return steps == {1} and not any(g.padding)

    @cached_property
    def largest(self) -> int:
        """W, the largest magnitude of a weight code; 0 for float weights."""
        if self.step is None or not self.weight.numel():
            return 0
        return max(-int(self.weight.min()), int(self.weight.max()))

    @cached_property
    def largest_sum(self) -> int:
        """``max_n sum |q_w|``, or a bound of it that fits 32 bits with any 8-bit input."""
        bound = self.largest * self.weight[:1].numel()
        if bound < 2**23:
            return bound
        return int(self.weight.flatten(1).int().abs().sum(1).max())

    @property
    def float_reason(self) -> str:
        """Why the operation is no product of 8-bit codes, or empty."""
        if self.inputs is None or self.step is None:
            return labels.FLOAT_OPERAND
        if not self.inputs.narrow or self.weight.dtype != torch.int8:
            return labels.WIDE_CODES
        return ""

    @property
    def int32_reason(self) -> str:
        """Why the operation is no product of 8-bit codes with sums of 32 bits, or empty."""
        if self.float_reason or self.inputs is None:
            return self.float_reason
        return "" if self.inputs.span * self.largest_sum < 2**31 else labels.WIDE_SUMS

    @property
    def saturates(self) -> bool:
        """Whether a sum of two products can leave int16."""
        return self.inputs is not None and saturates(self.inputs.span, self.largest)

    def channel_steps(self) -> Tensor:
        """The step of each output channel, ``(N,)``; 1 for float weights."""
        step = torch.ones(()) if self.step is None else self.step
        return step.to(self.weight.device).expand(self.outputs).contiguous()

    def channel_sums(self) -> Tensor:
        """The weight summed over input channels, ``(N, *k)``: int32 of codes, else float64."""
        return self.weight.sum(1, dtype=torch.float64 if self.step is None else torch.int32)

    def float_weight(self) -> Tensor:
        """The weight in float32, a new tensor if it is held as codes."""
        weight = self.weight.to(torch.float32)
        return weight if self.step is None else weight.mul_(along_rows(self.step, weight))

    def lifted(self) -> Operation:
        """The same as a convolution in two dimensions: of a linear layer, one with one position;
        of a convolution in one dimension, one with a height of 1.
        """
        ones = (1,) * (4 - self.weight.ndim)
        weight = self.weight.reshape(*self.weight.shape[:2], *ones, *self.taps)
        return replace(self, weight=weight, geometry=self.geometry.lifted())

    def signature(self) -> tuple[object, ...]:
        """Equal for layers that run equally fast on equal inputs."""
        return tuple(self.weight.shape), self.largest, self.inputs, self.geometry


def saturates(span: int, largest: int) -> bool:
    """Whether x86 kernels without VNNI saturate.

    Arguments:
        span: A, of the activation.
        largest: W, of the weight, or of the other activation.
    """
    return 2 * span * largest >= 2**15


def attention_reason(one: Codes, other: Codes, signed: bool = False) -> str:
    """Why a product of two activations, as in attention, is none of 8-bit codes, or empty.

    Arguments:
        one: Codes of the first operand.
        other: Codes of the second.
        signed: Whether the second has to be signed around zero, as weights are.
    """
    if not (one.narrow and other.narrow):
        return labels.WIDE_CODES
    if one.offset or other.offset:
        return labels.OFFSET_CODES
    if signed and (other.low < -128 or other.high > 127):
        return labels.UNSIGNED_CODES
    return ""


def along_rows(step: Tensor, weight: Tensor) -> Tensor:
    """A step ``(N,)`` or ``()`` that broadcasts over a weight ``(N, *)``."""
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step
