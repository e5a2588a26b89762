r"""Bias correction: what the rounding of weights adds to a layer's output on average is taken off
its bias.

    b_c <- b_c - E[(W_hat x_hat - W x_hat)_c]

over calls, positions and samples, for each output channel c.

References:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019
    (https://arxiv.org/abs/1906.04721), section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.calibrate.calls import Call, run
from tdquant.hooks import hooked
from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer, quantized_layers


@torch.no_grad()
def correct_biases(model: nn.Module, calls: list[Call]) -> dict[str, float]:
    """Corrects the bias of every layer that has one and quantized weights.

    Returns:
        path -> root mean square of the correction.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def measure(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
        exact = layer.combine(layer.input_quantizer(x), layer.weight)
        channel = 1 if isinstance(layer, (QuantConv1d, QuantConv2d)) else y.ndim - 1
        error = (y - exact).float().movedim(channel, 0).flatten(1)
        sums[name] = sums.get(name, 0.0) + error.sum(1)
        counts[name] = counts.get(name, 0) + error.shape[1]

    chosen = {
        name: layer
        for name, layer in quantized_layers(model)
        if layer.bias is not None and not isinstance(layer.weight_quantizer, nn.Identity)
    }
    hooks = [
        layer.register_forward_hook(lambda m, args, y, name=name: measure(name, m, args[0], y))
        for name, layer in chosen.items()
    ]
    with hooked(hooks):
        for call in calls:
            run(model, call)
    moved = {}
    for name, layer in chosen.items():
        if name in sums and layer.bias is not None:
            shift = sums[name] / counts[name]
            layer.bias.sub_(shift.to(layer.bias.dtype))
            moved[name] = float(shift.square().mean().sqrt())
    return moved
