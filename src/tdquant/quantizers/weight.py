r"""Weight quantizers: signed narrow codes, one learned step for each output channel or for the
tensor.

    w_hat = s clip(round(w / s), -Q, Q),    Q = 2^(b-1) - 1

The step starts where the squared error of the channel is least and learns by the LSQ gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError, FreezeError
from tdquant.fakequant import FLOOR, codes, fake_quantize, noise_quantize
from tdquant.grid import Grid
from tdquant.scales.base import Float32, floored


def along_channels(step: Tensor, weight: Tensor) -> Tensor:
    """A step ``()`` or ``(C,)``, shaped to broadcast over a weight ``(C, *)``."""
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step


_SHRINKS = torch.linspace(1.0, 0.3, 29)


def mse_step(weight: Tensor, grid: Grid, per_channel: bool, where: str = "") -> Tensor:
    """The step with the least squared error among shrunken maxima, ``(C,)`` or ``()``.

    Arguments:
        weight: ``(C, *)``, output channels first.
        grid: Symmetric codes.
        per_channel: One step a channel, or one for all.
        where: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite.
    """
    rows = (
        weight.detach().float().flatten(1)
        if per_channel
        else weight.detach().float().reshape(1, -1)
    )
    if not rows.isfinite().all():
        raise ConversionError(
            f"{int((~rows.isfinite()).sum())} weights are NaN or infinite",
            where=where,
            fix="repair the checkpoint, or leave the layer in float: Recipe(exclude=...)",
        )
    if not rows.any():
        raise ConversionError(
            "all weights are zero",
            where=where,
            why="a scale cannot start from them, and the layer does nothing",
            fix="train the model first, or leave the layer in float: Recipe(exclude=...)",
        )
    largest = rows.abs().amax(dim=1, keepdim=True) / grid.high
    best = torch.full_like(largest, torch.inf)
    step = largest.clone()
    for shrink in _SHRINKS.tolist():
        s = (largest * shrink).clamp(min=FLOOR)
        error = (fake_quantize(rows, s, grid.low, grid.high) - rows).square().sum(1, keepdim=True)
        step = torch.where(error < best, s, step)
        best = best.minimum(error)
    step = step.clamp(min=FLOOR).squeeze(1)
    return step if per_channel else step.squeeze(0)


class WeightQuantizer(Float32):
    """Fake-quantizes a weight ``(C, *)`` by a learned step.

    Arguments:
        grid: Symmetric codes.
        step: First value, ``(C,)`` for one a channel or ``()``.
    """

    def __init__(self, grid: Grid, step: Tensor) -> None:
        super().__init__()
        self.grid = grid
        self.step = nn.Parameter(step.detach().float())

    def scale(self, weight: Tensor) -> Tensor:
        """The step shaped to broadcast over the weight."""
        count = weight.numel() / max(self.step.numel(), 1)
        s = floored(self.step, (count * self.grid.high) ** -0.5)
        return along_channels(s, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The nearest grid points of the weight, in its dtype."""
        return fake_quantize(weight, self.scale(weight), self.grid.low, self.grid.high)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, codes={self.grid.codes}, steps={self.step.numel()}"


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


class FrozenWeight(Float32):
    """The quantizer of a weight that already lies on its grid: passes it on, and knows its codes.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
    """

    step: Tensor

    def __init__(self, grid: Grid, step: Tensor) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("step", step.detach().float().clone())

    def scale(self, weight: Tensor) -> Tensor:
        """The step shaped to broadcast over the weight."""
        return along_channels(self.step, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def codes(self, weight: Tensor, where: str = "") -> Tensor:
        """The integer codes of the weight, int32 of its shape.

        Raises:
            FreezeError: The weight does not lie on the grid: it was changed after freezing.
        """
        scale = self.scale(weight)
        found = codes(weight, scale, self.grid.low, self.grid.high)
        if not torch.equal((found * scale).to(weight.dtype), weight.detach()):
            raise FreezeError(
                "a frozen weight is off its grid",
                where=where,
                why="it was changed after freezing, or cast to a type too coarse for its codes",
                fix="freeze the quantized model again",
            )
        return found

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, codes={self.grid.codes}, steps={self.step.numel()}"


class CodedWeight(FrozenWeight):
    """A frozen weight held as its codes, a quarter of the memory: the numbers are formed at every
    use, in the type that the model was cast to last.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
        dtype: Of the numbers.
    """

    def __init__(self, grid: Grid, step: Tensor, dtype: torch.dtype) -> None:
        super().__init__(grid, step)
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """The numbers that codes stand for; numbers pass, as they do through a FrozenWeight."""
        if weight.is_floating_point():
            return weight
        return (weight * self.scale(weight)).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)
