"""What a scale is: a module from the timestep to the quantization step of one tensor.

TDQ's network, a learned static step, an input-dynamic step and a table are four scales and differ
in nothing else. Calibrating and freezing replace one scale by another; the type of the child
module is the state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tdquant.errors import CalibrationError
from tdquant.numerics.fake_quantize import FLOOR, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales.curves import Curves

SCALES: dict[str, type[Scale]] = {}
"""Every registered scale class by its kind."""


class KeepFloat32Mixin(nn.Module):
    """Keeps parameters and buffers in float32 when the model is cast: bfloat16 ruins scales."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float32 and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep, recurse)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name, tensor in state.items():
            if name.startswith(prefix) and tensor.is_floating_point():
                state[name] = tensor.float()
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[arg-type]


class Scale(KeepFloat32Mixin, ABC):
    """``scale(timestep, x, grid) -> s``: positive float32 of shape ``()`` or ``(B,)``, or
    ``(*, 1)`` by rows.

    A subclass sets its ``kind``, which registers it, and whether it reads the timestep. Only
    ``forward`` is required. The other methods say how the scale starts from calibrated steps, over
    which times it is frozen, and how a checkpoint restores it.

    A class whose scales can be computed together has a static method ``batched_steps(scales,
    timestep) -> {scale: step}``: see ``tdquant.clock``.
    """

    kind: ClassVar[str] = ""
    timed: ClassVar[bool] = False
    """Whether ``timestep`` is read; if not, it may be None."""
    calibrated: ClassVar[bool] = True
    """Whether calibration can create it, so that a recipe may ask for it."""
    by_row: bool = False
    """Whether ``forward`` gives a step for each row of the last dimension, ``(*, 1)``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            SCALES.setdefault(cls.kind, cls)

    @classmethod
    def from_step(cls, step: float, grid: Grid) -> Scale:
        """Creates the scale from one calibrated step."""
        return cls(step)  # type: ignore[call-arg]

    @classmethod
    def from_curves(cls, curves: Curves, options: Mapping[str, Any]) -> Sequence[Scale]:
        """Creates one scale for each curve, as close to it as the class can represent; by default
        from one step, the geometric mean over time.

        Arguments:
            curves: The steps that calibration found.
            options: ``Recipe.temporal``.
        """
        steps = curves.steps.log().mean(1).exp() if cls.timed else curves.steps[:, 0]
        return [
            cls.from_step(float(step), grid)
            for step, grid in zip(steps, curves.grids, strict=True)
        ]

    def training_times(self) -> Tensor | None:
        """Times ``(K,)`` of the table that ``freeze`` makes; None if they are not known, in which
        case ``freeze`` needs ``timesteps=``.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``blank`` besides tensors, JSON-safe."""
        return {}

    @classmethod
    def blank(cls, **settings: Any) -> Scale:
        """Creates a scale of these settings, whose tensors are loaded afterwards."""
        return cls(**settings)

    @abstractmethod
    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        """The step at timesteps ``()`` or ``(B,)`` for the tensor x ``(B, *)``."""

    def quantize(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        """Rounds x to the grid by a step that ``forward`` returned, shaped to broadcast over x.
        Subclasses may change how the step learns; in evaluation the value is the same for all.
        """
        return fake_quantize(x, step, grid.low, grid.high)


def recipe_kinds() -> tuple[str, ...]:
    """The kinds of scales that a recipe may ask for."""
    return "auto", *(kind for kind, scale in SCALES.items() if scale.calibrated)


def steps_at(scales: Sequence[Scale], times: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Steps ``(K,)`` of timed scales of one class at times ``(K,)``, computed as a call of the
    model computes them.
    """
    batched_steps = getattr(type(scales[0]), "batched_steps", None)
    known = batched_steps(scales, times) if batched_steps is not None else {}
    return [
        known[scale] if scale in known else scale(times, torch.empty(0, dtype=torch.float32), grid)
        for scale, grid in zip(scales, grids, strict=True)
    ]


class _Floored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return s.clamp(min=FLOOR)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (grad if ctx.factor == 1 else grad * ctx.factor), None


def floored(s: Tensor, factor: float = 1.0) -> Tensor:
    """``max(s, FLOOR)`` with the gradient of ``factor * s``: a step on the floor can rise again.

    LSQ's factor is ``1 / sqrt(N Q)``.
    """
    if torch.is_grad_enabled() and s.requires_grad:
        return _Floored.apply(s, factor)
    return s.clamp(min=FLOOR)


def lsq_factor(x: Tensor, grid: Grid) -> float:
    """LSQ's ``1 / sqrt(N Q)`` for an activation: N features of one sample, Q the highest code."""
    features = x[0].numel() if x.ndim and x.shape[0] else 1
    return (features * max(grid.high, 1)) ** -0.5


def inverse_softplus(s: Tensor) -> Tensor:
    """``y`` with ``log(1 + e^y) = s > 0``: ``s + log(-expm1(-s))`` never over- or underflows."""
    return s + torch.log(-torch.expm1(-s))


def check_step(value: float, where: str) -> float:
    """A usable start for a step: finite and not negative, raised to the floor.

    Raises:
        CalibrationError: The value is NaN, infinite or negative.
    """
    if not math.isfinite(value) or value < 0:
        raise CalibrationError(
            f"a scale of {value}",
            where=where,
            why="scales are positive and finite",
            fix="look for NaN or infinite activations or weights in the float model",
        )
    return max(value, FLOOR)
