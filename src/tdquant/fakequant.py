r"""Fake quantization: the nearest grid point, with straight-through gradients.

    v = x / s,    x_hat = s clip(round(v), low, high)

Rounding has the gradient of the identity, which gives

    d x_hat / d x = 1 where low <= v <= high, else 0
    d x_hat / d s = clip(round(v), low, high) - (v where low <= v <= high, else 0)

Arithmetic is float32 whatever the dtype of x, so that half-precision models keep their scales'
precision.

References:
    Esser et al., Learned Step Size Quantization, 2020 (https://arxiv.org/abs/1902.08153),
    equations 1 to 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tdquant.errors import ClockError

FLOOR = 1e-8
"""Smallest scale. Scales are positive by construction; this is far below what any float16
activation needs.
"""


def expand_scale(scale: Tensor, x: Tensor) -> Tensor:
    """Shapes a scale ``()`` or ``(B,)`` to broadcast over ``x`` ``(B * k, *)``.

    Attention folds k heads into the batch, sample by sample: there each scale is repeated k times.

    Raises:
        ClockError: The batch of x is no multiple of the number of scales.
    """
    if scale.ndim == 0:
        return scale
    if scale.shape[0] == 1:
        return scale.reshape(())
    repeat, rest = divmod(x.shape[0], scale.shape[0])
    if rest:
        raise ClockError(
            f"{scale.shape[0]} timesteps for a batch of {x.shape[0]}",
            why="there is one timestep for the whole batch or one for each sample",
        )
    if repeat > 1:
        scale = scale.repeat_interleave(repeat)
    return scale.reshape(-1, *[1] * (x.ndim - 1))


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = low, high
        return _round_to_grid(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        v = x.float() / scale
        inside = (v >= low) & (v <= high)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            slope = v.round().clamp_(low, high).sub_(v * inside)
            grad_scale = (slope * grad).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None


def _round_to_grid(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    v = torch.div(x.float(), scale)
    return v.round_().clamp_(low, high).mul_(scale).to(x.dtype)


def fake_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The grid point nearest to each element of x.

    Arguments:
        x: Values ``(B, *)``.
        scale: Positive step s, float32, broadcastable to x (see ``expand_scale``).
        low: Lowest code counted from zero.
        high: Highest code counted from zero.

    Returns:
        ``(B, *)`` in the dtype of x, differentiable in x and scale.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, low, high)
    return _round_to_grid(x, scale, low, high)


def codes(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The integer codes ``clip(round(x / s), low, high)`` themselves, counted from zero, int32."""
    return torch.div(x.float(), scale).round_().clamp_(low, high).to(torch.int32)


def scale_gradient(s: Tensor, factor: float) -> Tensor:
    """The value of s with its gradient multiplied by ``factor``: LSQ's ``1 / sqrt(N Q)``."""
    if not s.requires_grad:
        return s
    fixed = s.detach()
    return fixed + (s - fixed) * factor  # s - fixed is 0: the value is s to the last bit
