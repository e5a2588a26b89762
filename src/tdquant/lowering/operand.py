"""A quantized activation in a graph: its codes and its step, apart from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdquant.lowering.operation import Codes
from tdquant.numerics.batch_axis import BatchAxis, axis_of
from tdquant.numerics.fake_quantize import FLOOR, expand_scale
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales import BankedScale, Scale


class StepValues:
    """The steps of the call in progress: the root looks them up, every operand reads its own.

    Attributes:
        one_time: Whether an operand takes one step for all samples, whose times must be equal.
    """

    def __init__(self) -> None:
        self.banks: dict[int, tuple[Tensor, ...]] = {}
        self.one_time = False
        self.timestep = torch.zeros((), dtype=torch.float32)

    def read(self) -> Tensor:
        """The timestep, as ``Clock.read`` gives it."""
        return self.timestep


class PrecomputedScale(Scale):
    """A column of what the root looked up."""

    def __init__(self, scale: BankedScale, values: StepValues, banks: list[Any]) -> None:
        super().__init__()
        self.values, self.bank = values, banks.index(scale.bank)
        self.pick = scale.pick

    def now(self) -> Tensor:
        """What the column has at the timesteps of the call in progress, ``()`` or ``(B,)``."""
        return self.pick(self.values.banks[self.bank])

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        return self.now()


class Operand(nn.Module):
    """One quantized activation.

    Arguments:
        quantizer: A frozen quantizer with a banked or a dynamic scale.
        values: Where the root leaves what it looked up.
        banks: Banks of the model, in order.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, values: StepValues, banks: list[Any]
    ) -> None:
        super().__init__()
        codes, scale = Codes.of(quantizer), quantizer.scale
        assert codes is not None
        self.codes, self.batch, self.values = codes, quantizer.batch, values
        self.by_row = scale.by_row
        self.scale = (
            PrecomputedScale(scale, values, banks) if isinstance(scale, BankedScale) else None
        )

    def step(self, x: Tensor) -> Tensor:
        """The step at the call's timesteps, shaped to broadcast over x."""
        if self.scale is None:
            return expand_scale(self.dynamic_step(x), x, BatchAxis(self._axis))
        step = self.scale.now()
        if step.ndim and axis_of(x, step.shape[0], self.batch) is None:
            self.values.one_time = True  # which the session checks
            step = step[:1]
        return expand_scale(step, x, self.batch)

    @property
    def _axis(self) -> int:
        return (self.batch.axis or 0) if self.batch is not None else 0

    def dynamic_step(self, x: Tensor) -> Tensor:
        """``DynamicScale`` without flattening x: OpenVINO moves what it takes for scales of
        channels through a flattening, and fails.
        """
        axes = tuple(d for d in range(x.ndim) if d != self._axis or x.ndim == 1)
        axes = (-1,) if self.by_row else axes
        steps = []
        if self.codes.high > 0:
            steps.append(x.amax(axes, self.by_row) / self.codes.high)
        if self.codes.low < 0:
            steps.append(x.amin(axes, self.by_row) / self.codes.low)
        return (steps[0] if len(steps) == 1 else steps[0].maximum(steps[1])).clamp(min=FLOOR)

    def quantize(self, x: Tensor, step: Tensor) -> Tensor:
        """The nearest codes, in float."""
        return self.codes.ratio(x, step).round().clamp(self.codes.low, self.codes.high)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest grid points, in float: for products that no integer kernel takes."""
        step = self.step(x)
        found = self.quantize(x, step) * step
        return found + self.codes.offset if self.codes.offset else found
