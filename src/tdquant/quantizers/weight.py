r"""Weight quantizers: signed narrow codes, one learned step for each output channel or for the
tensor.

    w_hat = s clip(round(w / s), -Q, Q),    Q = 2^(b-1) - 1

The step starts where the squared error of the channel is least and learns by the LSQ gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError, FreezeError
from tdquant.numerics.fake_quantize import FLOOR, fake_quantize, noise_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales.base import KeepFloat32Mixin, floored


def along_channels(step: Tensor, weight: Tensor) -> Tensor:
    """A step ``()`` or ``(C,)``, shaped to broadcast over a weight ``(C, *)``."""
    return step.reshape(-1, *[1] * (weight.ndim - 1)) if step.ndim else step


_SHRINKS = torch.linspace(1.0, 0.3, 29)
_BLOCK = 1 << 17
"""Weights that a thread searches at once: they and a copy fit its second-level cache."""


@torch.no_grad()
def mse_step(weight: Tensor, grid: Grid, per_channel: bool, where: str = "") -> Tensor:
    """The step with the least squared error among shrunken maxima, ``(C,)`` or ``()``.

    Needs a few megabytes beside the weight, however large that is.

    Arguments:
        weight: ``(C, *)``, output channels first.
        grid: Symmetric codes.
        per_channel: One step a channel, or one for all.
        where: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    weight = weight.detach()
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    blocks = row_blocks(rows)
    largest = torch.zeros(0)
    if rows.numel():
        largest = torch.cat([rows[block].abs().amax(dim=1) for block in blocks])
    # NaN is the largest of its row, and infinity too.
    if not largest.isfinite().all():
        odd = sum(int((~rows[block].isfinite()).sum()) for block in blocks)
        raise ConversionError(
            f"{odd} weights are NaN or infinite",
            where=where,
            fix="repair the checkpoint, or leave the layer in float: Recipe(exclude=...)",
        )
    if not largest.any():
        raise ConversionError(
            "all weights are zero",
            where=where,
            why="a scale cannot start from them, and the layer does nothing",
            fix="train the model first, or leave the layer in float: Recipe(exclude=...)",
        )
    step = torch.cat(
        [_best_shrink(rows[block].float(), largest[block].float(), grid) for block in blocks]
    )
    return step if per_channel else step.squeeze(0)


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices of the rows ``(C, N)`` of a size to work on at once: in the cache on the CPU, all of
    them elsewhere. Each has a multiple of 8 rows, but for the last.
    """
    count = max(len(rows), 1)
    if rows.device.type == "cpu":
        wanted = _BLOCK * torch.get_num_threads() // max(rows.shape[1], 1)
        count = min(count, max(wanted // 8 * 8, 8))
    return [slice(start, start + count) for start in range(0, len(rows), count)]


def _best_shrink(rows: Tensor, largest: Tensor, grid: Grid) -> Tensor:
    """The best step ``(C,)`` of rows ``(C, N)`` with maxima ``(C,)``, in one buffer."""
    largest = largest[:, None] / grid.high
    best, step = torch.full_like(largest, torch.inf), largest.clone()
    buffer = torch.empty_like(rows)
    for shrink in _SHRINKS.tolist():
        s = (largest * shrink).clamp(min=FLOOR)
        torch.div(rows, s, out=buffer)
        buffer.round_().clamp_(grid.low, grid.high).mul_(s)
        error = buffer.sub_(rows).square_().sum(1, keepdim=True)
        step = torch.where(error < best, s, step)
        best = best.minimum(error)
    return step.clamp(min=FLOOR).squeeze(1)


class WeightQuantizer(KeepFloat32Mixin):
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

    def refitted(self, weight: Tensor, where: str = "") -> WeightQuantizer:
        """A quantizer of another weight: the same codes, steps of least squared error.

        Raises:
            ConversionError: As ``mse_step``.
        """
        return type(self)(self.grid, mse_step(weight, self.grid, self.step.ndim > 0, where))

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


class FrozenWeight(KeepFloat32Mixin):
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
        found = torch.div(weight.float(), scale).round_().clamp_(self.grid.low, self.grid.high)
        if not torch.equal((found * scale).to(weight.dtype), weight.detach()):
            raise FreezeError(
                "a frozen weight is off its grid",
                where=where,
                why="it was changed after freezing, or cast to a type too coarse for its codes",
                fix="freeze the quantized model again",
            )
        return found.int()

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, codes={self.grid.codes}, steps={self.step.numel()}"
