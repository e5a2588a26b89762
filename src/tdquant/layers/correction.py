r"""The correction of a denoiser's output over time.

    y = g(t) f(x, t) + b(t)

What rounding adds to a prediction is not independent of it, nor zero on average: it takes a share
of the prediction (g), and it shifts the mean of every channel (b). A sampler adds predictions up,
and with them errors that point the same way at every step, while others cancel. The correction
takes those back. g is a table over time like every scale, b one for each channel; together they
cost one multiplication and one addition a call.

References:
    He et al., PTQD: Accurate Post-Training Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2305.10657), sections 3.3 and 3.4: the correlated part and the mean of
    quantization noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import CalibrationError
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.numerics.grid import Grid
from tdquant.scales import Scale, TableScale
from tdquant.scales.bank import rows_at
from tdquant.scales.base import KeepFloat32Mixin
from tdquant.scales.table import first_index
from tdquant.state import note
from tdquant.support.hooks import group_onloaded

_NO_GRID = Grid.signed(8)  # tables do not look at it


class BiasTable(KeepFloat32Mixin):
    """``table(t)``: a shift for each channel, ``(1, C)`` at a time ``()`` or ``(B, C)`` at times
    ``(B,)``. Linear between knots, constant outside them.

    Arguments:
        knots: Times ``(K,)``, increasing.
        table: Shifts ``(K, C)``.

    Raises:
        CalibrationError: The two do not fit, times do not increase, or a shift is not finite.
    """

    knots: Tensor

    def __init__(self, knots: Tensor, table: Tensor) -> None:
        super().__init__()
        knots, table = knots.detach().float(), table.detach().float()
        fits = knots.ndim == 1 and table.ndim == 2 and 0 < len(knots) == len(table)
        if not fits or (knots.diff() <= 0).any() or not table.isfinite().all():
            raise CalibrationError(
                f"shifts {tuple(table.shape)} at times {tuple(knots.shape)}",
                where="BiasTable",
                fix="finite shifts (K, C) at K increasing times",
            )
        self.register_buffer("knots", knots.clone())
        self.table = nn.Parameter(table.clone(), requires_grad=False)
        self.index_knots()

    def index_knots(self) -> None:
        """Records whether the knots are consecutive integers, which integer timesteps index."""
        self.first = first_index(self.knots)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.index_knots()

    def forward(self, timestep: Tensor) -> Tensor:
        return rows_at(timestep, self.knots, self.first, self.table, _linear)

    def extra_repr(self) -> str:
        return f"knots={len(self.knots)}, channels={self.table.shape[1]}"


def _linear(b0: Tensor, b1: Tensor, w: Tensor) -> Tensor:
    """``(1 - w) b0 + w b1``, exact at both ends, in float64 as between steps of scales."""
    w = w.double()
    return (b0.double() * (1 - w) + b1.double() * w).float()


class OutputCorrection(nn.Module):
    """``g(t) y + b(t)`` for the output y of the root model; a child of the root,
    ``tdq_correction``.

    Arguments:
        scale: g, a table over time.
        clock: Where the timestep of the call in progress is read.
        channels: The first channels of the output (dimension 1) that are corrected, None for all:
            a model that predicts variances as well has them behind its prediction.
        bias: b, or None.
        axis: The dimension of the output that b counts: 1, or -1 for tokens ``(B, N, C)``.
    """

    def __init__(
        self,
        scale: Scale,
        clock: Clock,
        channels: int | None = None,
        bias: BiasTable | None = None,
        axis: int = 1,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.clock = clock
        self.channels = channels
        self.bias = bias
        self.axis = axis

    @classmethod
    def blank(
        cls,
        clock: Clock,
        knots: int,
        channels: int | None = None,
        bias: int | None = None,
        axis: int = 1,
    ) -> OutputCorrection:
        """Creates a correction of these ``settings``, whose tables are loaded afterwards."""
        times = torch.arange(knots, dtype=torch.float32)
        scale = TableScale(times, torch.ones(knots, dtype=torch.float32)).requires_grad_(False)
        table = None
        if bias is not None:
            table = BiasTable(times, torch.zeros(knots, bias, dtype=torch.float32))
        return cls(scale, clock, channels, table, axis)

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``blank`` besides the clock, JSON-safe."""
        return {
            "knots": len(self.scale.knots),  # type: ignore[arg-type]
            "channels": self.channels,
            "bias": None if self.bias is None else self.bias.table.shape[1],
            "axis": self.axis,
        }

    def attach(self, model: nn.Module) -> None:
        """Has every call of the root go through this correction, in place of an earlier one."""
        before = correction_of(model)
        if before is not None:
            before.detach(model)
        model.tdq_correction = self
        # Before the clock's own hook, which forgets the timestep.
        self._hook = model.register_forward_hook(self._after, prepend=True)
        self.clock.invalidate_scale_cache()

    def detach(self, model: nn.Module) -> None:
        """Takes the correction off the root again."""
        self._hook.remove()
        del model.tdq_correction
        self.clock.invalidate_scale_cache()

    def factor(self, y: Tensor) -> Tensor:
        """g at the current timestep, shaped to broadcast over y."""
        g = self.scale(self.clock.read() if self.scale.timed else None, y, _NO_GRID)
        return expand_scale(g, y)

    def shift(self, y: Tensor) -> Tensor | None:
        """b at the current timestep, shaped to broadcast over y."""
        if self.bias is None:
            return None
        # One time for all samples, or one for each.
        b: Tensor = self.bias(expand_scale(self.clock.read(), y).reshape(-1))
        for _ in range(y.ndim - 2):
            b = b.unsqueeze(1 if self.axis == -1 else -1)
        return b

    def forward(self, y: Tensor) -> Tensor:
        """The corrected prediction ``(B, C, *)``, in its dtype."""
        if self.channels is None:
            return self._corrected(y)
        own, rest = y[:, : self.channels], y[:, self.channels :]
        return torch.cat([self._corrected(own), rest], dim=1)

    def _corrected(self, y: Tensor) -> Tensor:
        b = self.shift(y)
        scaled = y * self.factor(y)
        return (scaled if b is None else scaled + b).to(y.dtype)

    def resample(self, knots: Tensor) -> None:
        """Replaces the tables by their values at other times, in place."""
        scale = TableScale(knots, gains_at(self.scale, knots).expand(len(knots)))
        self.scale = scale.requires_grad_(False)
        if self.bias is not None:
            self.bias = BiasTable(knots, self.bias(knots).expand(len(knots), -1))

    def _after(self, model: nn.Module, args: Any, output: Any) -> Any:
        with group_onloaded(model):
            y = self(prediction(output))
        if isinstance(output, Tensor):
            return y
        if isinstance(output, tuple):
            return (y, *output[1:])
        output.sample = y
        return output


def prediction(output: Any) -> Any:
    """The part of a model's output that is corrected: all, the first of a tuple, or ``sample``."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", None)


def correction_of(model: nn.Module) -> OutputCorrection | None:
    """The correction of a model's output, if it has one."""
    found = getattr(model, "tdq_correction", None)
    return found if isinstance(found, OutputCorrection) else None


@contextlib.contextmanager
def uncorrected(model: nn.Module) -> Iterator[None]:
    """Runs a model without its correction."""
    before = correction_of(model)
    if before is None:
        yield
        return
    before.detach(model)
    try:
        yield
    finally:
        before.attach(model)


def drop_correction(model: nn.Module, before: str) -> None:
    """Takes the correction off a model whose weights or scales are about to change, and notes it
    in the history: it was fitted to the errors of those that it has now. The record of remedies
    says that they ended.

    Arguments:
        model: The root model.
        before: What changes them: ``"train"``.
    """
    found, state = correction_of(model), getattr(model, "tdq", None)
    if found is not None:
        found.detach(model)
        note(model, "drop correction", before=before)
    if state is not None and state.remedies is not None:
        state.remedies = state.remedies.until(before)


def gains_at(scale: Scale, times: Tensor) -> Tensor:
    """The gains at times ``()`` or ``(K,)``; ``()`` if it is one for all times."""
    return scale(times, torch.empty(0, dtype=torch.float32), _NO_GRID)
