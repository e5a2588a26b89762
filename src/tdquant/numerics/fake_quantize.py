r"""Fake quantization: the nearest grid point, with straight-through gradients.

    v = x / s,    x_hat = s clip(round(v), low, high)

Rounding has the gradient of the identity, which gives

    d x_hat / d x = 1 where low <= v <= high, else 0
    d x_hat / d s = clip(round(v), low, high) - (v where low <= v <= high, else 0)

Two baselines learn s otherwise. PACT drops what rounding adds, and NIPQ rounds nothing while it
trains but adds noise as large as rounding's error:

    d x_hat / d s = clip(v, low, high) where v is outside, else 0                            (PACT)
    x_hat = s (clip(v, low, high) + u),    u ~ U(-1/2, 1/2)                                  (NIPQ)

Arithmetic is float32 whatever the dtype of x, so that half-precision models keep their scales'
precision.

References:
    Esser et al., Learned Step Size Quantization, 2020 (https://arxiv.org/abs/1902.08153),
    equations 1 to 3.
    Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018
    (https://arxiv.org/abs/1805.06085), equation 3.
    Shin et al., NIPQ: Noise Proxy-Based Integrated Pseudo-Quantization, 2023
    (https://arxiv.org/abs/2206.00820), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tdquant.numerics.batch_axis import BatchAxis, axis_of, cannot_tell

FLOOR = 1e-8
"""Smallest scale. Scales are positive by construction; this is far below what any float16
activation needs.
"""


def expand_scale(scale: Tensor, x: Tensor, batch: BatchAxis | None = None) -> Tensor:
    """Shapes a scale ``()`` or ``(B,)`` to broadcast over x. One of rows, ``(*, 1)``, does.

    Arguments:
        scale: One step, one for each sample, or one for each row of the last dimension.
        x: The activation.
        batch: Where its samples lie; None if that was never found out: the first dimension is the
            batch if it has its size.

    Raises:
        ClockError: Steps differ, and samples cannot be told apart.
    """
    if scale.ndim != 1:
        return scale
    if scale.shape[0] == 1:
        return scale.reshape(())
    if not scale.shape[0]:
        return scale.new_ones(())  # of no samples
    axis = axis_of(x, scale.shape[0], batch)
    return common_value(scale, x) if axis is None else axis.expand(scale, x)


def common_value(scale: Tensor, x: Tensor) -> Tensor:
    """The one value ``()`` of a scale ``(B,)``. In a graph, which cannot raise, values that differ
    give NaN.

    Raises:
        ClockError: Its values differ.
    """
    equal = (scale == scale[0]).all()
    if torch.compiler.is_compiling():
        return torch.where(equal, scale[0], float("nan"))
    if not equal:
        raise cannot_tell(x, scale.shape[0])
    return scale[0]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, multipliers: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, scale, multipliers)
        ctx.bounds = low, high
        return _round_to_grid(x, scale, low, high, multipliers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        # The time is that of passes over memory: no masks, no copies, and most of it in place.
        x, scale, multipliers = ctx.saved_tensors
        low, high = ctx.bounds
        v = torch.div(x.float(), scale if multipliers is None else scale * multipliers)
        grad = grad.float()
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = _inside(grad, v, low, high).to(x.dtype)
        if ctx.needs_input_grad[1]:
            straight = _inside(v, v, low, high)
            slope = v.round_().clamp_(low, high).sub_(straight)
            if multipliers is not None:
                slope.mul_(multipliers)
            grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None, None


class _ClipQuantize(_FakeQuantize):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        x, scale, _ = ctx.saved_tensors
        v = torch.div(x.float(), scale)
        grad = grad.float()
        grad_x = _inside(grad, v, *ctx.bounds)
        # Inside the clipping range the difference is exactly zero.
        grad_scale = (grad - grad_x).mul_(v.clamp_(*ctx.bounds)).sum_to_size(scale.shape)
        return grad_x.to(x.dtype), grad_scale, None, None, None


class _NoiseQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, noise: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, noise)
        ctx.bounds = low, high
        v = torch.div(x.float(), scale)
        return v.clamp_(low, high).add_(noise).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        x, scale, noise = ctx.saved_tensors
        v = torch.div(x.float(), scale)
        grad = grad.float()
        grad_x = _inside(grad, v, *ctx.bounds).to(x.dtype)
        straight = _inside(v, v, *ctx.bounds)
        slope = v.clamp_(*ctx.bounds).sub_(straight).add_(noise)
        return grad_x, slope.mul_(grad).sum_to_size(scale.shape), None, None, None


def _inside(values: Tensor, v: Tensor, low: int, high: int) -> Tensor:
    """``values`` where ``low <= v <= high``, else 0, in one pass.

    hardtanh's backward does that with both bounds excluded: it gets the float32 numbers next to
    them.
    """
    return torch.ops.aten.hardtanh_backward(values, v, low - _ulp(low), high + _ulp(high))


def _ulp(code: int) -> float:
    """The distance from an integer to the float32 beyond it, away from zero."""
    return 2.0 ** (abs(code).bit_length() - 24) if code else 2.0**-149


def _round_to_grid(
    x: Tensor, scale: Tensor, low: int, high: int, multipliers: Tensor | None = None
) -> Tensor:
    if multipliers is None:
        v = torch.div(x.float(), scale)
        return v.round_().clamp_(low, high).mul_(scale).to(x.dtype)
    # As integers times one step, which is how whoever multiplies codes has it.
    v = torch.div(x.float(), scale * multipliers)
    return v.round_().clamp_(low, high).mul_(multipliers).mul_(scale).to(x.dtype)


def fake_quantize(
    x: Tensor, scale: Tensor, low: int, high: int, multipliers: Tensor | None = None
) -> Tensor:
    """The grid point nearest to each element of x.

    Arguments:
        x: Values ``(B, *)``.
        scale: Positive step s, float32, broadcastable to x (see ``expand_scale``).
        low: Lowest code counted from zero.
        high: Highest code counted from zero.
        multipliers: m, whole numbers in the shape of x: its steps are ``s m``.

    Returns:
        ``(B, *)`` in the dtype of x, differentiable in x and scale.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, low, high, multipliers)
    return _round_to_grid(x, scale, low, high, multipliers)


def clip_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """``fake_quantize`` with PACT's gradient: the scale learns from clipping alone."""
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _ClipQuantize.apply(x, scale, low, high, None)
    return _round_to_grid(x, scale, low, high)


def noise_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """NIPQ's stand-in for ``fake_quantize`` in training: x clipped, and noise of one step."""
    noise = torch.rand(x.shape, device=x.device, dtype=torch.float32).sub_(0.5)
    return _NoiseQuantize.apply(x, scale, low, high, noise)


def codes(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The integer codes ``clip(round(x / s), low, high)`` themselves, counted from zero, int32."""
    return torch.div(x.float(), scale).round_().clamp_(low, high).to(torch.int32)
