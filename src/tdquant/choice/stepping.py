"""The step of a calibrated input outside of a call."""

from __future__ import annotations

import torch
from torch import Tensor

from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer


@torch.no_grad()
def step_at(quantizer: ActivationQuantizer, x: Tensor, timestep: Tensor) -> Tensor:
    """The step of an input x at the time ``()`` or times ``(B,)``."""
    scale = quantizer.scale
    step = scale(timestep if scale.timed else None, x, quantizer.grid)
    return expand_scale(step, x, quantizer.batch)
