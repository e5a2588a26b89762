r"""Learned rounding of a weight: every number goes to one of its two neighbours on the grid.

    w_hat = s (floor(w / s) + [r >= 1/2]),    d w_hat / d r = s,    s = s_c m / M

r starts at the fraction of w / s, so that the start is rounding to nearest. That is the best
choice for each number alone; for what a layer computes, errors that cancel each other are better.
The gradient of the decision is straight-through: the loss is always that of whole codes, so
nothing has to be decided in the end. The step of the channel learns beside it, as ``s_c exp(g)``;
codes are counted in the first step, whatever becomes of g. Multipliers of groups stay.

References:
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020
    (https://arxiv.org/abs/2004.10568): the problem, and that one of two neighbours is enough. A
    relaxed decision and a penalty, its way there, takes thousands of updates.
    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation, 2013 (https://arxiv.org/abs/1308.3432): the straight-through gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantizers.groups import Groups
from tdquant.quantizers.weight import WeightQuantizer, along_channels
from tdquant.scales.base import floored

_SIXTEENTHS = 16
_EDGE = 0.49
"""Distance from a code that still rounds to it."""


class DecidedWeight(WeightQuantizer):
    """A quantizer of codes that were decided for one weight."""

    def plain(self) -> WeightQuantizer:
        """The quantizer of the same steps that rounds to nearest."""
        return WeightQuantizer(self.grid, self.step, self.groups)

    def refitted(self, weight: Tensor, where: str = "") -> WeightQuantizer:
        """A quantizer that rounds another weight to nearest: codes were decided for this one."""
        return self.plain().refitted(weight, where)


class RoundedWeight(DecidedWeight):
    """A weight whose codes are decided, whatever the float weight that they came from.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
        codes: Codes q of the weight's shape, counted from zero.
        groups: Multipliers of groups of inputs.
    """

    codes: Tensor

    def __init__(
        self, grid: Grid, step: Tensor, codes: Tensor, groups: Groups | None = None
    ) -> None:
        super().__init__(grid, step, groups)
        self.register_buffer("codes", codes.detach().to(code_dtype(grid.bits)))

    def forward(self, weight: Tensor) -> Tensor:
        """The numbers that the codes stand for, in the dtype of the weight."""
        m = self.spread(weight)
        integers = self.codes if m is None else self.codes * m
        return (integers * self.channels(weight)).to(weight.dtype)

    def codes_of(self, weight: Tensor) -> Tensor:
        return self.codes


class ShiftedWeight(DecidedWeight):
    r"""Fake-quantizes a weight whose codes were decided, and which can go on learning.

        w_hat = s clip(round(w / s + r), low, high)

    The shift r is what leads from the float weight to the code that was chosen for it, in
    sixteenths: the weight stays the float one.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
        shift: ``16 r``, int8 of the weight's shape.
        groups: Multipliers of groups of inputs.
    """

    shift: Tensor

    def __init__(
        self, grid: Grid, step: Tensor, shift: Tensor, groups: Groups | None = None
    ) -> None:
        super().__init__(grid, step, groups)
        self.register_buffer("shift", shift)

    @classmethod
    @torch.no_grad()
    def from_rounded(cls, rounded: RoundedWeight, weight: Tensor) -> ShiftedWeight:
        """The quantizer that rounds a weight to decided codes; to the nearest it can reach where
        one is more than seven steps away.
        """
        r = rounded.codes - torch.div(weight.detach().float(), rounded.scale(weight))
        shift = (r * _SIXTEENTHS).round_().clamp_(-127, 127).to(torch.int8)
        return cls(rounded.grid, rounded.step.detach(), shift, rounded.groups)

    def shifted(self, weight: Tensor) -> Tensor:
        """The float32 weight ``w + s r``, which rounding to nearest takes to the same codes."""
        return weight.float() + self.shift * (self.scale(weight).detach() / _SIXTEENTHS)

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(self.shifted(weight)).to(weight.dtype)

    def codes_of(self, weight: Tensor) -> Tensor:
        return super().codes_of(self.shifted(weight))


class LearnedRounding(WeightQuantizer):
    """Fake-quantizes a weight by a rounding that learns.

    Arguments:
        grid: Symmetric codes.
        step: First step s, ``(C,)`` or ``()``; it stays.
        weight: ``(C, *)``, at whose codes and fractions the rounding starts.
        groups: Multipliers of groups of inputs.
        start: Codes to start at, if others than the nearest; where the weight has another, the
            rounding starts at the edge of the code's cell that is nearest to it.

    Attributes:
        choice: r, one number for each weight.
        growth: g, one number for each step.
    """

    below: Tensor

    def __init__(
        self,
        grid: Grid,
        step: Tensor,
        weight: Tensor,
        groups: Groups | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__(grid, step, groups)
        self.step.requires_grad_(False)
        v = torch.div(weight.detach().float(), self.scale(weight))
        if start is not None:
            v = torch.where(v.round() == start, v, v.clamp(start - _EDGE, start + _EDGE))
        # Beyond the grid there are two codes to choose from as well: the last and the one before.
        below = v.floor().clamp(grid.low, grid.high - 1)
        self.register_buffer("below", below.to(code_dtype(grid.bits)))
        self.choice = nn.Parameter((v - below).clamp(0, 1))
        self.growth = nn.Parameter(torch.zeros_like(self.step))

    def grown(self, weight: Tensor) -> Tensor:
        """The step ``s_c exp(g) / M``, shaped to broadcast over the weight."""
        return along_channels(self.unit(self.step * self.growth.exp()), weight)

    def forward(self, weight: Tensor) -> Tensor:
        straight = self.choice - self.choice.detach()
        found, m = self.below + (self.choice.detach() >= 0.5) + straight, self.spread(weight)
        found = found if m is None else found * m
        return (found * self.grown(weight)).to(weight.dtype)

    @torch.no_grad()
    def rounded(self) -> RoundedWeight:
        """The rounding as it stands."""
        found = self.below + (self.choice >= 0.5).to(self.below.dtype)
        step = floored(self.step * self.growth.exp())
        return RoundedWeight(self.grid, step, found, self.groups)


@torch.no_grad()
def decided(quantizer: WeightQuantizer, weight: Tensor) -> RoundedWeight:
    """Decides on the codes that a quantizer rounds a weight to."""
    step, found = floored(quantizer.step), quantizer.codes_of(weight)
    return RoundedWeight(quantizer.grid, step, found, quantizer.groups)
