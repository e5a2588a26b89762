"""Checks and measures of quantized layers that several remedies share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tdquant.layers import QuantLayer
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer, ShiftedWeight, WeightQuantizer
from tdquant.scales import DynamicScale


def is_plain(layer: QuantLayer) -> bool:
    """Whether the weight is rounded by its steps, or by decided codes, and the input by a scale
    that calibration chose: such a layer can be rewritten.
    """
    quantizer = layer.input_quantizer
    return (
        type(quantizer) is ActivationQuantizer
        and not isinstance(quantizer.scale, DynamicScale)
        and type(layer.weight_quantizer) in (WeightQuantizer, ShiftedWeight)
    )


@torch.no_grad()
def step_at(quantizer: ActivationQuantizer, x: Tensor, timestep: Tensor) -> Tensor:
    """The step of an input x at the time ``()`` or times ``(B,)``, outside of a call."""
    scale = quantizer.scale
    step = scale(timestep if scale.timed else None, x, quantizer.grid)
    return expand_scale(step, x, quantizer.batch)


def column_energy(weight: Tensor) -> Tensor:
    """Summed squares of the columns of a weight ``(N, C, *k)``, by input channel, ``(C,)``."""
    return weight.square().sum(0).reshape(weight.shape[1], -1).sum(1)


@torch.no_grad()
def weight_error(layer: Any, energy: Tensor) -> Tensor:
    """Mean squared error of the layer's output that rounding the weight causes, channels taken to
    be independent.

    Arguments:
        layer: A live quantized layer.
        energy: Mean squares of its input channels, ``(C,)``.
    """
    error = (layer.weight_quantizer(layer.weight) - layer.weight).detach().float()
    return (column_energy(error) * energy).sum()
