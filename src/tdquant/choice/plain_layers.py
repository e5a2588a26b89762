"""Checks and measures of quantized layers that several remedies share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tdquant.calibration.judge import Judgement, judge_changes
from tdquant.calibration.projections import Changes, Projection
from tdquant.calls.call import Call
from tdquant.choice.time import layer_macs
from tdquant.layers import QuantLayer
from tdquant.layers.base import INPUT
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer, ShiftedWeight, WeightQuantizer
from tdquant.scales import DynamicScale
from tdquant.support.progress import track


class InputAt(NamedTuple):
    """The input of a layer in one call.

    Attributes:
        path: The layer.
        quantizer: The quantizer of the input.
        x: The input, in float.
        timestep: ``()`` or ``(B,)``.
        slope: The slope of the output's projection there, of x's shape.
        batch: Where samples lie in x.
    """

    path: str
    quantizer: ActivationQuantizer
    x: Tensor
    timestep: Tensor
    slope: Tensor
    batch: BatchAxis | None

    def step(self) -> Tensor:
        """The step that the input has."""
        return step_at(self.quantizer, self.x, self.timestep)


def has_plain_input(layer: QuantLayer) -> bool:
    """Whether the input is rounded by a scale that calibration chose."""
    quantizer = layer.input_quantizer
    return type(quantizer) is ActivationQuantizer and not isinstance(quantizer.scale, DynamicScale)


def is_plain(layer: QuantLayer) -> bool:
    """Whether the weight is rounded by its steps, or by decided codes, and the input by a scale
    that calibration chose: such a layer can be rewritten.
    """
    weight = type(layer.weight_quantizer)
    return has_plain_input(layer) and weight in (WeightQuantizer, ShiftedWeight)


@torch.no_grad()
def step_at(quantizer: ActivationQuantizer, x: Tensor, timestep: Tensor) -> Tensor:
    """The step of an input x at the time ``()`` or times ``(B,)``, outside of a call."""
    scale = quantizer.scale
    step = scale(timestep if scale.timed else None, x, quantizer.grid)
    return expand_scale(step, x, quantizer.batch)


def judge_inputs(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    counts: Mapping[str, int],
    changes_at: Callable[[InputAt], Iterator[Changes]],
    calls: list[Call],
    label: str,
    seed: int,
    progress: bool,
) -> Judgement:
    """Measures what changes of the inputs of layers do to the model's output, each alone.

    Arguments:
        model: A quantized and calibrated model; it runs in float.
        layers: Path -> layer.
        counts: Place -> number of changes there.
        changes_at: Gives the changes at one input of a call, and their places.
        calls: Calls of the model.
        label: Of the progress bar.
        seed: Seed of the projections.
        progress: Draw a bar.
    """
    quantizers = {path + INPUT: layer.input_quantizer for path, layer in layers.items()}

    def changes(projection: Projection) -> Iterator[Changes]:
        for name, x, timestep, slope, batch in projection.inputs:
            path, quantizer = name.removesuffix(INPUT), quantizers[name]
            yield from changes_at(InputAt(path, quantizer, x, timestep, slope, batch))

    shown = track(calls, label, len(calls), progress)
    return judge_changes(model, quantizers, counts, changes, shown, seed)


def input_rows(
    model: nn.Module, layers: Mapping[str, QuantLayer], macs: Mapping[str, int]
) -> tuple[dict[str, float], int]:
    """Rows that each layer multiplies by its weight for one sample, and the multiply-accumulates
    of a call for one.

    Arguments:
        model: A quantized model.
        layers: Path -> layer.
        macs: What ``observe`` counted.
    """
    own = layer_macs(model, macs)
    rows = {path: own.get(path, 0) / layer.weight.numel() for path, layer in layers.items()}
    return rows, sum(own.values())


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
