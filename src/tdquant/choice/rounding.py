r"""Rounding of weights by what layers compute, for all layers in few passes over the calls.

Each layer's codes are those of GPTQ (``tdquant.refine.reconstruction.gptq``), which bring what the
layer computes from the inputs of the quantized model near to what it computes in the float model.
In contrast to ``reconstruct`` few layers wait for the ones before them: they are rounded in
``WAVES`` groups in the order of a call, and the inputs of a group are those behind the rounded
weights of earlier groups. Activations are not quantized in that pass: a weight that is fitted to
their quantization noise shrinks, as in any regression on noisy inputs, and the errors of outputs
that are too small add up over the steps of a sampler.

Layers on the time path form their own groups and are rounded first. All samples of a call give
them the same input, so they use all calls; other layers have seen enough after a few.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from tdquant.calibration.report import RemedyTrial
from tdquant.calls.call import Call, run
from tdquant.calls.observing import in_float, observing, watching
from tdquant.choice.trial import Trial
from tdquant.families.roles import roles_of
from tdquant.layers import QuantLayer
from tdquant.layers.base import shared_parameters
from tdquant.layers.structure import names_of
from tdquant.quantizers import (
    RoundedWeight,
    ShiftedWeight,
    WeightQuantizer,
    activation_quantizers,
)
from tdquant.refine.reconstruction.blocks import called, learned_layers
from tdquant.refine.reconstruction.gptq import ROWS, Hessian, block_widths, gptq
from tdquant.support.progress import track
from tdquant.support.restoring import evaluating

MOST_BITS = 8
"""Wider weights are rounded to nearest."""

COLUMNS = 4608
"""Most inputs of a layer that are rounded together: 512 channels of a window of 3x3. Time grows
with the third power.
"""

MEMORY = 2 << 30
"""Bytes of Hessians at once."""

WAVES = 8
"""Groups of layers that are rounded one after the other."""

TIME_WAVES = 2
"""Groups of layers on the time path."""

ENOUGH = 12
"""Calls that suffice for a group whose layers see many rows in each; each group takes others."""

LEAST_ROWS = 2
"""Rows of inputs for each column that a layer sees at least, if there are calls enough."""


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
    model: nn.Module,
    calls: list[Call],
    *,
    waves: int = WAVES,
    memory: int = MEMORY,
    progress: bool = True,
) -> dict[str, RoundedWeight]:
    """Chooses the codes of all weights of up to 8 bits; the model stays as it is.

    Arguments:
        model: A quantized and calibrated model.
        calls: Calls of it.
        waves: Groups of layers; those of a later one see what the rounding of those of earlier
            ones does to their inputs.
        memory: Bytes of Hessians at once; fewer make more groups.
        progress: Draw bars.

    Returns:
        Path of the layer -> quantizer of its weight. Layers that no call reaches, and weights that
        several layers share, are not in it.
    """
    shared, on_time_path = shared_parameters(model), roles_of(model).time_path
    with evaluating(model):
        order = {path: place for place, path in enumerate(called(model, calls[0]))}
    layers = {
        path: layer
        for path, layer in sorted(learned_layers(model), key=lambda item: order.get(item[0], 0))
        if path in order
        and type(layer.weight_quantizer) in (WeightQuantizer, ShiftedWeight)
        and layer.weight_quantizer.grid.bits <= MOST_BITS
        and id(layer.weight) not in shared
    }
    of_time = {p: x for p, x in layers.items() if on_time_path.intersection(names_of(model, p))}
    others = {path: layer for path, layer in layers.items() if path not in of_time}
    groups = [(wave, len(calls)) for wave in _waves(of_time, TIME_WAVES, memory)]
    groups += [(wave, ENOUGH) for wave in _waves(others, waves, memory)]
    own = {path: layer.weight_quantizer for path, layer in layers.items()}
    found: dict[str, RoundedWeight] = {}
    random = torch.Generator().manual_seed(0)
    try:
        for wave, enough in groups:
            drawn = [calls[i] for i in torch.randperm(len(calls), generator=random).tolist()]
            hessians = _weigh(model, drawn, wave, list(found), enough, progress)
            for path, layer in track(wave.items(), "rounding weights", len(wave), progress):
                hessian = hessians.pop(path)
                if hessian.rows:
                    found[path], _, _ = gptq(layer, hessian.total, drift=hessian.drift)
                    layer.weight_quantizer = found[path]
    finally:
        for path, quantizer in own.items():
            layers[path].weight_quantizer = quantizer
    return found


def _weigh(
    model: nn.Module,
    calls: list[Call],
    wave: dict[str, QuantLayer],
    rounded: Collection[str],
    enough: int,
    progress: bool,
) -> dict[str, Hessian]:
    """Runs calls in float, and with ``rounded`` layers' weights quantized, until ``enough`` calls
    and ``LEAST_ROWS`` of each layer have been seen.

    Returns:
        Path of the layer -> what GPTQ needs of its inputs.
    """
    hessians = {}
    for path, layer in wave.items():
        rows = -(-ROWS * min(layer.weight[0].numel(), COLUMNS) // min(enough, len(calls)))
        hessians[path] = Hessian(layer, rows, COLUMNS)
    number = 0
    quantizers = dict(activation_quantizers(model))
    own = {path: layer.input_quantizer for path, layer in wave.items()}
    exact: dict[str, list[Tensor]] = {path: [] for path in wave}

    def keep(path: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
        exact[path].append(hessians[path].take(x, number))

    def add(path: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
        hessians[path].add(own[path](x), number)
        if exact[path]:
            hessians[path].add_drift(x, exact[path].pop(0), number)

    for call in track(calls, "weighing inputs", min(enough, len(calls)), progress):
        if number >= enough and all(map(_seen_enough, hessians.values())):
            break
        for seen in exact.values():
            seen.clear()
        with in_float(model), watching(wave, keep):
            run(model, call)
        with observing(model, quantizers, rounded=rounded), watching(wave, add):
            run(model, call)
        number += 1
    return hessians


def _seen_enough(hessian: Hessian) -> bool:
    """Whether the rows of a layer are many for its columns; none at all are not waited for."""
    return not 0 < hessian.rows < LEAST_ROWS * max(block.shape[1] for block in hessian.total)


def _waves(
    layers: dict[str, QuantLayer], count: int, memory: int
) -> Iterator[dict[str, QuantLayer]]:
    """The layers, in at least so many groups whose Hessians fit the memory."""
    wave: dict[str, QuantLayer] = {}
    used, most = 0, -(-len(layers) // max(count, 1))
    for path, layer in layers.items():
        widths = block_widths(layer.weight[0].numel(), COLUMNS)
        size = 8 * getattr(layer, "groups", 1) * sum(width**2 for width in widths)
        if wave and (used + size > memory or len(wave) >= most):
            yield wave
            wave, used = {}, 0
        wave[path] = layer
        used += size
    if wave:
        yield wave
