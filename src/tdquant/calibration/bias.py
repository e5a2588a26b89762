r"""Bias correction: subtracts from a layer's bias what the rounding of its weights adds to its
output on average.

    b_c <- b_c - E[(W_hat x_hat - W x_hat)_c]

over calls, positions and samples, for each output channel c.

References:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019
    (https://arxiv.org/abs/1906.04721), section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.calls.observing import watching
from tdquant.layers import CONVOLUTIONS, QuantLayer, quantized_layers, structured_layers
from tdquant.layers.base import shared_parameters
from tdquant.layers.float_bias import shift_bias
from tdquant.quantizers import CodedWeight
from tdquant.support.restoring import evaluating


def correct_biases(model: nn.Module, calls: list[Call]) -> dict[str, float]:
    """Corrects the bias of every layer that has one and quantized weights, if the float weights
    are still there. A bias that several modules share stays: each would shift it for itself. Of a
    split layer, the bias is that of the first part, which takes the correction of all parts; a
    layer corrected before is corrected anew, from its float bias.

    Returns:
        path -> root mean square of the correction.
    """
    shifts = bias_shifts(model, calls)
    for name, shift in shifts.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLayer)
        shift_bias(layer, -shift)
    return {name: float(shift.square().mean().sqrt()) for name, shift in shifts.items()}


@torch.no_grad()
def bias_shifts(model: nn.Module, calls: list[Call]) -> dict[str, Tensor]:
    """What the rounding of weights adds to outputs on average, ``(C,)`` by the path of each layer
    whose bias can be corrected. The model stays as it is.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def measure(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
        exact = layer.combine(layer.input_quantizer(x), layer.weight)
        channel = 1 if isinstance(layer, CONVOLUTIONS) else y.ndim - 1
        error = (y - exact).float().movedim(channel, 0).flatten(1)
        sums[name] = sums.get(name, 0.0) + error.sum(1)
        counts[name] = counts.get(name, 0) + error.shape[1]

    layers = {
        name: layer
        for name, layer in quantized_layers(model)
        if not isinstance(layer.weight_quantizer, (nn.Identity, CodedWeight))
    }
    with evaluating(model), watching(layers, measure):
        for call in calls:
            run(model, call)
    shared = shared_parameters(model)
    firsts = {f"{path}.parts.0": f"{path}.parts." for path, _ in structured_layers(model)}
    found = {}
    for name, layer in layers.items():
        if name not in sums or layer.bias is None or id(layer.bias) in shared:
            continue
        own = [n for n in sums if n.startswith(firsts[name])] if name in firsts else [name]
        found[name] = torch.stack([sums[n] / counts[n] for n in own]).sum(0)
    return found
