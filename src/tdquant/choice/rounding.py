r"""Rounding of weights by what layers compute, for all layers in few passes over the calls.

Each layer's codes are those of GPTQ (``tdquant.refine.reconstruction.gptq``) for its inputs in the
model whose activations are quantized and whose weights are not. In contrast to ``reconstruct`` no
layer waits for the ones before it: the calls are run once for as many layers as memory allows,
not once for each block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tdquant.calibration.report import RemedyTrial
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing, watching
from tdquant.choice.trial import Trial
from tdquant.layers import QuantLayer
from tdquant.layers.base import shared_parameters
from tdquant.quantizers import RoundedWeight, ShiftedWeight, WeightQuantizer
from tdquant.refine.reconstruction.blocks import learned_layers
from tdquant.refine.reconstruction.gptq import ROWS, Hessian, block_widths, gptq
from tdquant.support.progress import track

MOST_BITS = 8
"""Wider weights are rounded to nearest."""

COLUMNS = 4608
"""Most inputs of a layer that are rounded together: 512 channels of a window of 3x3. Time grows
with the third power.
"""

MEMORY = 2 << 30
"""Bytes of Hessians at once."""


@torch.no_grad()
def try_rounding(
    model: nn.Module, calls: list[Call], trial: Trial, *, progress: bool = True
) -> list[RemedyTrial]:
    """Chooses the codes of all weights of up to 8 bits, and keeps them if the whole model's error
    falls, in place.

    Arguments:
        model: A quantized and calibrated model.
        calls: Calls of it.
        trial: Measures the whole model.
        progress: Draw bars.
    """
    found = rounded_weights(model, calls, progress=progress)
    if not found:
        return []
    layers = {path: layer for path, layer in learned_layers(model) if path in found}
    chosen = {p: ShiftedWeight.from_rounded(found[p], layer.weight) for p, layer in layers.items()}
    own = {path: layer.weight_quantizer for path, layer in layers.items()}

    def change(apply: bool) -> None:
        for path, layer in layers.items():
            layer.weight_quantizer = chosen[path] if apply else own[path]

    what = f"codes of {len(found)} weights by their layers' outputs"
    return [trial.confirm(model, "rounding", what, change)]


@torch.no_grad()
def rounded_weights(
    model: nn.Module, calls: list[Call], *, memory: int = MEMORY, progress: bool = True
) -> dict[str, RoundedWeight]:
    """Chooses the codes of all weights of up to 8 bits; the model stays as it is.

    Arguments:
        model: A quantized and calibrated model.
        calls: Calls of it.
        memory: Bytes of Hessians at once; fewer make more passes over the calls.
        progress: Draw bars.

    Returns:
        Path of the layer -> quantizer of its weight. Layers that no call reaches, and weights that
        several layers share, are not in it.
    """
    shared = shared_parameters(model)
    layers = {
        path: layer
        for path, layer in learned_layers(model)
        if type(layer.weight_quantizer) in (WeightQuantizer, ShiftedWeight)
        and layer.weight_quantizer.grid.bits <= MOST_BITS
        and id(layer.weight) not in shared
    }
    found: dict[str, RoundedWeight] = {}
    for wave in _waves(layers, memory):
        limits = {
            n: -(-ROWS * min(layer.weight[0].numel(), COLUMNS) // len(calls))
            for n, layer in wave.items()
        }
        hessians = {n: Hessian(layer, limits[n], COLUMNS) for n, layer in wave.items()}
        number = 0

        def add(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
            hessians[name].add(layer.input_quantizer(x), number)  # noqa: B023

        with observing(model, {}), watching(wave, add):
            for call in track(calls, "weighing inputs", len(calls), progress):
                run(model, call)
                number += 1
        for name, layer in track(wave.items(), "rounding weights", len(wave), progress):
            hessian = hessians.pop(name)
            if hessian.rows:
                found[name], _, _ = gptq(layer, hessian.total)
    return found


def _waves(layers: dict[str, QuantLayer], memory: int) -> Iterator[dict[str, QuantLayer]]:
    """The layers, in groups whose Hessians fit the memory."""
    wave: dict[str, QuantLayer] = {}
    used = 0
    for path, layer in layers.items():
        widths = block_widths(layer.weight[0].numel(), COLUMNS)
        size = 8 * getattr(layer, "groups", 1) * sum(width**2 for width in widths)
        if wave and used + size > memory:
            yield wave
            wave, used = {}, 0
        wave[path] = layer
        used += size
    if wave:
        yield wave
