r"""The gain of a denoiser's output over time.

    y = g(t) f(x, t)

What rounding adds to a prediction is not independent of it. Near the image, where little noise is
left in x, coarse activations cannot tell all of it, and a quantized model predicts less noise than
the float one does: the rest stays in every sample as grain. One factor a timestep takes that part
of the error back. It is a table like every scale and costs one multiplication a call.

References:
    He et al., PTQD: Accurate Post-Training Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2305.10657), section 3.3: the correlated part of quantization noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.numerics.grid import Grid
from tdquant.scales import Scale

_NO_GRID = Grid.signed(8)  # tables do not look at it


class OutputGain(nn.Module):
    """Multiplies the root model's output by ``g(t)``; a child of the root, ``tdq_gain``.

    Arguments:
        scale: g, a table over time.
        clock: Where the timestep of the call in progress is read.
        channels: The first channels of the output that are multiplied, None for all: a model that
            predicts variances as well has them behind its prediction.
    """

    def __init__(self, scale: Scale, clock: Clock, channels: int | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.clock = clock
        self.channels = channels

    def attach(self, model: nn.Module) -> None:
        """Has every call of the root go through this gain."""
        model.tdq_gain = self
        # Before the clock's own hook, which forgets the timestep.
        self._hook = model.register_forward_hook(self._after, prepend=True)

    def detach(self, model: nn.Module) -> None:
        """Takes the gain off the root again."""
        self._hook.remove()
        del model.tdq_gain

    def factor(self, y: Tensor) -> Tensor:
        """g at the current timestep, ``()`` or ``(B,)``."""
        return self.scale(self.clock.read() if self.scale.timed else None, y, _NO_GRID)

    def forward(self, y: Tensor) -> Tensor:
        """The prediction ``(B, C, *)`` times g, in its dtype."""
        g = expand_scale(self.factor(y), y)
        if self.channels is None:
            return (y * g).to(y.dtype)
        own, rest = y[:, : self.channels], y[:, self.channels :]
        return torch.cat([(own * g).to(y.dtype), rest], dim=1)

    def _after(self, model: nn.Module, args: Any, output: Any) -> Any:
        y = self(prediction(output))
        if isinstance(output, Tensor):
            return y
        if isinstance(output, tuple):
            return (y, *output[1:])
        output.sample = y
        return output


def prediction(output: Any) -> Any:
    """The part of a model's output that its gain multiplies: all, the first of a tuple, or
    ``sample``.
    """
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", None)


def gain_of(model: nn.Module) -> OutputGain | None:
    """The gain of a model's output, if it has one."""
    found = getattr(model, "tdq_gain", None)
    return found if isinstance(found, OutputGain) else None


def values_of(scale: Scale, times: Tensor) -> Tensor:
    """The gains at times ``()`` or ``(K,)``; ``()`` if it is one for all times."""
    return scale(times, torch.empty(0), _NO_GRID)
