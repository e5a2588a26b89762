"""One quantized activation of a lowered graph: codes and a step, apart from each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tdquant.numerics.fake_quantize import FLOOR, expand_scale
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, OffsetQuantizer
from tdquant.scales import BankedScale, Scale

INT8_CODES = 256
"""Codes of an operand that integer kernels take; more are fake-quantized in float."""


class Steps:
    """The steps of the call in progress: the root looks them up, every operand reads its own."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Tensor, ...]] = {}


class FoundScale(Scale):
    """A column of what the root looked up."""

    def __init__(self, scale: BankedScale, steps: Steps, banks: list[Any]) -> None:
        super().__init__()
        self.steps, self.place = steps, (banks.index(scale.bank), scale.column)

    def now(self) -> Tensor:
        """What the column has at the timesteps of the call in progress, ``()`` or ``(B,)``."""
        bank, column = self.place
        return self.steps.found[bank][column]

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        return self.now()


class Operand(nn.Module):
    """One quantized activation: its codes and its step, apart from each other.

    Arguments:
        quantizer: A frozen quantizer with a banked or a dynamic scale.
        steps: Where the root leaves what it looked up.
        banks: Banks of the model, in order.
    """

    def __init__(self, quantizer: ActivationQuantizer, steps: Steps, banks: list[Any]) -> None:
        super().__init__()
        self.low, self.high = quantizer.grid.low, quantizer.grid.high
        self.offset = quantizer.offset if isinstance(quantizer, OffsetQuantizer) else 0.0
        scale = quantizer.scale
        self.scale = FoundScale(scale, steps, banks) if isinstance(scale, BankedScale) else None

    @property
    def codes(self) -> int:
        """Number of codes."""
        return self.high - self.low + 1

    def step(self, x: Tensor) -> Tensor:
        """The step at the call's timesteps, shaped to broadcast over x."""
        return expand_scale(self.dynamic_step(x) if self.scale is None else self.scale.now(), x)

    def dynamic_step(self, x: Tensor) -> Tensor:
        """``DynamicScale`` without flattening x: OpenVINO moves what it takes for scales of
        channels through a flattening, and fails.
        """
        axes = tuple(range(1, x.ndim))
        steps = []
        if self.high > 0:
            steps.append(x.amax(axes) / self.high)
        if self.low < 0:
            steps.append(x.amin(axes) / self.low)
        return (steps[0] if len(steps) == 1 else steps[0].maximum(steps[1])).clamp(min=FLOOR)

    def ratio(self, x: Tensor, step: Tensor) -> Tensor:
        """What is to be rounded."""
        return (x - self.offset if self.offset else x) / step

    def codes_of(self, x: Tensor, step: Tensor) -> Tensor:
        """The nearest codes as whole numbers, left for the engine's 256 levels to clamp where the
        grid has as many.
        """
        q = self.ratio(x, step).round()
        return q if self.codes == INT8_CODES else q.clamp(self.low, self.high)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest grid points, in float: for products that no integer kernel takes."""
        step = self.step(x)
        found = self.ratio(x, step).round().clamp(self.low, self.high) * step
        return found + self.offset if self.offset else found
