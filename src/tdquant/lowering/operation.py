r"""What a layer of a frozen model computes: codes, steps, geometry and bounds. Every engine and
exporter starts from it.

    q = clip(round((x - o) / s), low, high)                    codes of the input
    y = s s_w sum q q_w + o s_w sum_{inside} q_w + b

Codes are counted from zero; those of a weight in groups are times their multipliers, and s_w is
the step of these integers. o is the real number of code 0: zero except on published grids, where
no code stands for the zeros that a convolution pads with, and the second sum leaves these out.

    A = high - low,    W = max |q_w|
    A max_n sum |q_w|  < 2^31       sums fit 32 bits, whatever code the engine counts from
    2 A W              < 2^15       x86 kernels without VNNI, which add pairs of products of uint8
                                    with int8 in int16, do not saturate
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from tdquant.layers import QuantLayer
from tdquant.lowering import labels
from tdquant.lowering.geometry import Geometry
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer
from tdquant.quantizers.groups import Groups

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
class Operation:
    """A frozen layer.

    Attributes:
        weight: Codes ``(N, C / groups, *k)``, int8 or int16, or float weights.
        step: Of the weight, ``(N,)`` or ``()``; None for float weights.
        bias: ``(N,)`` or None.
        inputs: Codes of the input; None for float inputs.
        geometry: How windows lie.
        groups: Multipliers that the codes of the weight have in, for files.
    """

    weight: Tensor
    step: Tensor | None
    bias: Tensor | None
    inputs: Codes | None
    geometry: Geometry = field(default_factory=Geometry)
    groups: Groups | None = None

    @classmethod
    def of(cls, layer: QuantLayer, path: str) -> Operation:
        """The operation of a frozen layer.

        Arguments:
            layer: The layer.
            path: Its path, for errors.

        Raises:
            FreezeError: Its weight is off its grid.
        """
        quantizer, step, groups = layer.weight_quantizer, None, None
        if isinstance(quantizer, FrozenWeight):
            weight = layer.weight_codes(path).to(code_dtype(quantizer.grid.bits))
            step, groups = quantizer.unit(quantizer.step.detach().float()), quantizer.groups
        else:
            weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach().float()
        inputs, geometry = Codes.of(layer.input_quantizer), Geometry.of(layer)
        return cls(weight, step, bias, inputs, geometry, groups)

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
        step = torch.ones((), dtype=torch.float32) if self.step is None else self.step
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
        of a convolution in one dimension, one with a height of 1. One in three stays.
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
