r"""Weight quantizers: signed narrow codes, one learned step for each output channel or for the
tensor.

    w_hat = s clip(round(w / s), -Q, Q),    Q = 2^(b-1) - 1

The step starts where the squared error of the channel is least and learns by the LSQ gradient.
Groups of inputs may have whole multiples ``m s / M`` of a part of it, which stay as they started:
see ``tdquant.quantizers.groups``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.errors import FreezeError
from tdquant.numerics.fake_quantize import codes, fake_quantize, noise_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers.groups import Groups, most
from tdquant.quantizers.starting import start_steps
from tdquant.scales.base import KeepFloat32Mixin, floored


def along_channels(step: Tensor, weight: Tensor) -> Tensor:
    """A step ``()`` or ``(C,)``, shaped to broadcast over a weight ``(C, *)``."""
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step


class SteppedWeight(KeepFloat32Mixin):
    """What quantizers of weights share.

    Arguments:
        grid: Symmetric codes q.
        groups: Multipliers m of groups of inputs, if there are any.

    Attributes:
        step: s, ``(C,)`` or ``()``: that of a group whose multiplier is the largest.
        multipliers: m, uint8 ``(C, G)``, or None.
        group: Entries of a row in a group, or 0.
    """

    step: Tensor
    multipliers: Tensor | None

    def __init__(self, grid: Grid, groups: Groups | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.group = groups.size if groups else 0
        self.register_buffer("multipliers", groups.multipliers if groups else None)

    @property
    def groups(self) -> Groups | None:
        """The multipliers of groups, if there are any."""
        return None if self.multipliers is None else Groups(self.multipliers, self.group)

    def unit(self, step: Tensor) -> Tensor:
        """The step ``s / M`` of the integers ``m q``: of a step, itself without groups."""
        return step if self.multipliers is None else step / most(self.grid)

    def spread(self, weight: Tensor) -> Tensor | None:
        """m for every entry of the weight, uint8 of its shape; None without groups."""
        return None if self.groups is None else self.groups.spread(weight)

    def extra_repr(self) -> str:
        found = f"bits={self.grid.bits}, codes={self.grid.codes}, steps={self.step.numel()}"
        return f"{found}, groups of {self.group}" if self.group else found


class WeightQuantizer(SteppedWeight):
    """Fake-quantizes a weight ``(C, *)`` by a learned step.

    Arguments:
        grid: Symmetric codes.
        step: First value, ``(C,)`` for one a channel or ``()``.
        groups: Multipliers of groups of inputs, which are constants.
    """

    def __init__(self, grid: Grid, step: Tensor, groups: Groups | None = None) -> None:
        super().__init__(grid, groups)
        self.step = nn.Parameter(step.detach().float())

    def channels(self, weight: Tensor) -> Tensor:
        """The step of the integers ``m q``, shaped to broadcast over the weight."""
        count = weight.numel() / max(self.step.numel(), 1)
        s = floored(self.step, (count * self.grid.high) ** -0.5)
        return along_channels(self.unit(s), weight)

    def scale(self, weight: Tensor) -> Tensor:
        """The step of the codes q, shaped to broadcast over the weight; with groups of its own
        shape.
        """
        m = self.spread(weight)
        return self.channels(weight) if m is None else self.channels(weight) * m

    def codes_of(self, weight: Tensor) -> Tensor:
        """The codes that the weight is rounded to."""
        return codes(weight, self.scale(weight), self.grid.low, self.grid.high)

    def forward(self, weight: Tensor) -> Tensor:
        """The nearest grid points of the weight, in its dtype."""
        grid, m = self.grid, self.spread(weight)
        return fake_quantize(weight, self.channels(weight), grid.low, grid.high, m)

    def refitted(self, weight: Tensor, where: str = "") -> WeightQuantizer:
        """A quantizer of another weight: the same codes and size of groups, steps of least squared
        error.

        Raises:
            ConversionError: As ``mse_step``.
        """
        per_channel = self.step.ndim > 0
        return type(self)(
            self.grid, *start_steps(weight, self.grid, per_channel, self.group, where)
        )


class NoiseWeight(WeightQuantizer):
    """NIPQ's quantizer of a weight: in training, noise of one step in the place of rounding.

    Arguments:
        grid: Symmetric codes.
        step: First value, ``(C,)`` for one a channel or ``()``.

    References:
        Shin et al., NIPQ: Noise Proxy-Based Integrated Pseudo-Quantization, 2023
        (https://arxiv.org/abs/2206.00820), section 3.
    """

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            return noise_quantize(weight, self.scale(weight), self.grid.low, self.grid.high)
        return super().forward(weight)


class FrozenWeight(SteppedWeight):
    """The quantizer of a weight that already lies on its grid: passes it on, and knows its
    integers, which are the codes, times multipliers where there are groups.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
        groups: Multipliers of groups of inputs.
    """

    def __init__(self, grid: Grid, step: Tensor, groups: Groups | None = None) -> None:
        super().__init__(grid, groups)
        self.register_buffer("step", step.detach().float().clone())

    def scale(self, weight: Tensor) -> Tensor:
        """The step of the integers, shaped to broadcast over the weight."""
        return along_channels(self.unit(self.step), weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def codes(self, weight: Tensor, where: str = "") -> Tensor:
        """The integers of the weight, int32 of its shape: ``w = scale * codes``.

        Raises:
            FreezeError: The weight does not lie on the grid: it was changed after freezing.
        """
        scale, m = self.scale(weight), self.spread(weight)
        found = torch.div(weight.float(), scale if m is None else scale * m)
        found.round_().clamp_(self.grid.low, self.grid.high)
        if m is not None:
            found.mul_(m)
        if not torch.equal((found * scale).to(weight.dtype), weight.detach()):
            raise FreezeError(
                "a frozen weight is off its grid",
                where=where,
                why="it was changed after freezing, or cast to a type too coarse for its codes",
                fix="freeze the quantized model again",
            )
        return found.int()
