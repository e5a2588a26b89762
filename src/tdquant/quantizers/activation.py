r"""The quantizer of one activation tensor.

    x_hat = s(t) clip(round(x / s(t)), low, high)

one step for the tensor, or one for each sample where the batch mixes timesteps and samples can be
told apart. Time moves s; the
zero point is a static integer, which every integer engine takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale


class ActivationQuantizer(nn.Module):
    """Fake-quantizes what flows through it, of any shape.

    Arguments:
        grid: Its codes; calibration may move the zero point.
        scale: Gives its step.
        clock: Where the timestep of the call in progress is read.
        symmetric: Whether calibration has to leave the zero point where it is.
        wanted: Kind of scale that calibration is to put in place: a kind, or ``"auto"``.
        options: Options of the scale that calibration creates: ``Recipe.temporal``.

    Attributes:
        batch: Where samples lie in the tensor; None until ``calibrate`` has found out.
    """

    def __init__(
        self,
        grid: Grid,
        scale: Scale,
        clock: Clock,
        symmetric: bool = False,
        wanted: str = "auto",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.clock = clock
        self.scale = scale
        self.symmetric = symmetric
        self.wanted = wanted
        self.options = dict(options or {})
        self.batch: BatchAxis | None = None

    def twin(self, grid: Grid, scale: Scale) -> ActivationQuantizer:
        """A quantizer on the same clock, for the same samples, with other codes and steps."""
        new = ActivationQuantizer(
            grid, scale, self.clock, self.symmetric, self.wanted, self.options
        )
        new.batch = self.batch
        return new.train(self.training)

    def step(self, x: Tensor) -> Tensor:
        """The step for x at the current timestep, shaped to broadcast over x."""
        scale, batch = self.scale, self.batch
        if scale.by_row:  # wherever the samples lie
            return scale(None, x, self.grid)
        if not scale.timed:
            # A step of its own for each index there, if any: a sample may have several.
            rows = BatchAxis(batch.axis or 0) if batch is not None else None
            return expand_scale(scale(None, self._in_front(x), self.grid), x, rows)
        step = self.clock.precomputed_step(scale)
        if step is None:
            step = scale(self.clock.read(), self._in_front(x), self.grid)
        return expand_scale(step, x, batch)

    def _in_front(self, x: Tensor) -> Tensor:
        """x with its samples on the first dimension, if it is known where they lie."""
        axis = self.batch.axis if self.batch is not None else None
        return x.movedim(axis, 0) if axis and axis < x.ndim else x

    def forward(self, x: Tensor) -> Tensor:
        """The nearest grid points of x, in its dtype."""
        rounded = self.scale.quantize(x, self.step(x), self.grid)
        self.clock.keep(rounded)
        return rounded

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "scale":
            self.clock.invalidate_scale_cache()

    # The zero point is a Python integer, a constant for every engine and compiler; in state dicts
    # it is a tensor.
    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "zero_point"] = torch.tensor(self.grid.zero_point, dtype=torch.int32)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "zero_point"
        if key in state_dict:
            self.grid = self.grid.with_zero(int(state_dict[key]))
        elif strict:
            missing_keys.append(key)
        others = {k: v for k, v in state_dict.items() if k != key}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, codes={self.grid.codes}, zero_point={self.grid.zero_point}"


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Every activation quantizer below a model with its path, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module
