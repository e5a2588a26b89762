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
from tdquant.numerics.fake_quantize import FLOOR, expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales.curves import Curves

SCALES: dict[str, type[Scale]] = {}
"""Every registered scale law by its kind."""


class Float32(nn.Module):
    """Keeps its parameters and buffers float32 when the model is cast: bfloat16 ruins scales."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float32 and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep, recurse)


class Scale(Float32, ABC):
    """``scale(timestep, x, grid) -> s``: positive float32 of shape ``()`` or ``(B,)``.

    A subclass names its ``kind``, which registers it, and says which of its arguments it looks at.
    ``forward`` is all that it has to have. The other methods say how it starts from what was
    calibrated, over which times it is frozen, and how a checkpoint brings it back.

    A law that can be evaluated for many scales at once has a static method ``ahead(scales,
    timestep)``: see ``tdquant.clock``.
    """

    kind: ClassVar[str] = ""
    timed: ClassVar[bool] = False
    """Whether ``timestep`` is read; if not, it may be None."""
    calibrated: ClassVar[bool] = True
    """Whether calibration can make it, so that a recipe may ask for it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            SCALES.setdefault(cls.kind, cls)

    @classmethod
    def from_step(cls, step: float, grid: Grid) -> Scale:
        """The law where it starts from one calibrated step."""
        return cls(step)  # type: ignore[call-arg]

    @classmethod
    def from_curves(cls, curves: Curves, options: Mapping[str, Any]) -> Sequence[Scale]:
        """One scale for each curve, as near to it as the law can start; here from one step, the
        geometric mean over time.

        Arguments:
            curves: What calibration wants.
            options: ``Recipe.temporal``.
        """
        steps = curves.steps.log().mean(1).exp() if cls.timed else curves.steps[:, 0]
        return [
            cls.from_step(float(step), grid)
            for step, grid in zip(steps, curves.grids, strict=True)
        ]

    def training_times(self) -> Tensor | None:
        """Times ``(K,)`` of the table that ``freeze`` makes, None if the law does not know them:
        then ``freeze`` wants to be told.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """What ``blank`` needs beside tensors, JSON-safe."""
        return {}

    @classmethod
    def blank(cls, **settings: Any) -> Scale:
        """A scale of these settings, into which the tensors of another can be loaded."""
        return cls(**settings)

    @abstractmethod
    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        """The step at timesteps ``()`` or ``(B,)`` for the tensor x ``(B, *)``."""

    def quantize(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        """x ``(B, *)`` on the grid, by a step that ``forward`` gave. How the step learns is part
        of the law; the value is not, except while it trains.
        """
        return fake_quantize(x, expand_scale(step, x), grid.low, grid.high)


def recipe_kinds() -> tuple[str, ...]:
    """The kinds of scales that a recipe may ask for."""
    return "auto", *(kind for kind, law in SCALES.items() if law.calibrated)


def steps_at(scales: Sequence[Scale], times: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Steps ``(K,)`` of scales of one timed law at times ``(K,)``, by the very products that a
    call of the model makes.
    """
    law: Any = type(scales[0])
    known = law.ahead(scales, times) if hasattr(law, "ahead") else {}
    return [
        known[scale] if scale in known else scale(times, torch.empty(0), grid)
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
