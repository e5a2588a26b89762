r"""Input-dynamic steps: which inputs get a step of their own for each sample, or, of linear
layers, for each token (``tdquant.scales.dynamic``).

    gain = (e - e_dynamic) / cost

with e and e_dynamic the output error that rounding the input causes, by the judge. What such a
step sees and time does not tell is the sample: the inputs of some layers reach twice as far in one
sample as in another, and what lies beyond every step that calibration knows is clipped. So they
are judged on calls along trajectories that nothing was fitted to. The layers with the largest gain
are taken as long as the sum of their costs is within the budget. The cost is that of the reduction
over the input, as a share of a call.

Weights are rounded before: what the rounding of inputs adds shows only beside codes that are good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from tdquant.calibration.judge import Judgement
from tdquant.calibration.observe import Observations
from tdquant.calibration.projections import Changes
from tdquant.calibration.report import RemedyTrial
from tdquant.calls.call import Call
from tdquant.choice.plain_layers import (
    InputAt,
    has_plain_input,
    input_rows,
    judge_inputs,
    step_at,
)
from tdquant.choice.trial import FRESH, Trial, thinned
from tdquant.choice.within import within
from tdquant.layers import QuantLayer, QuantLinear, quantized_layers
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import DynamicScale, PendingScale

WORTH = 0.1
"""Share by which dynamic steps have to lower the error of the whole model."""

LEAST = 0.002
"""Least share of the error of all inputs that a dynamic step saves."""

ROW_COST, SAMPLE_COST = 17.0, 40.0
"""Time to look at a value of an input, in multiply-accumulates of 8 bits: among the neighbours in
its row, and among all of its sample, whose channels do not lie side by side.
"""


@torch.no_grad()
def try_dynamic(
    model: nn.Module,
    observations: Observations,
    trial: Trial,
    budget: float,
    *,
    margin: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> list[RemedyTrial]:
    """Gives inputs dynamic steps where that lowers the output error by more than ``margin``, and
    keeps them if the whole model's error falls, in place.

    Arguments:
        model: A quantized and calibrated model.
        observations: Those of its activations.
        trial: Measures the whole model.
        budget: Largest sum of costs, as a share of the time of a call.
        margin: Share of a layer's output error.
        seed: Seed of the judge.
        progress: Draw bars.
    """
    layers = _plain_inputs(model)
    if not (layers and budget > 0):
        return []
    scales = {
        path: DynamicScale(by_row=isinstance(layer, QuantLinear)).train(layer.training)
        for path, layer in layers.items()
    }
    known = trial.fresh or thinned(observations.calls, FRESH)
    judged = _judge(model, layers, scales, known, seed, progress)
    errors = {path: judged.mean(path).tolist() for path in layers}
    everything = sum(own for own, _ in errors.values())
    gains = {
        path: own - dynamic
        for path, (own, dynamic) in errors.items()
        if dynamic < (1 - margin) * own and own - dynamic > LEAST * everything
    }
    chosen = within(budget, gains, _costs(model, layers, observations))
    if not chosen:
        return []
    before = {path: layers[path].input_quantizer.scale for path in chosen}

    def change(apply: bool) -> None:
        for path in chosen:
            layers[path].input_quantizer.scale = (scales if apply else before)[path]

    what = f"steps of each sample or token of {len(chosen)} inputs"
    return [trial.confirm(model, "dynamic", what, change, WORTH)]


def drop_dynamic(model: nn.Module) -> None:
    """Removes the dynamic steps that an earlier calibration chose, in place."""
    for name, quantizer in activation_quantizers(model):
        if chosen_dynamic(quantizer):
            quantizer.scale = PendingScale(quantizer.wanted, name)


def chosen_dynamic(quantizer: nn.Module) -> bool:
    """Whether an input has a dynamic step that its recipe did not ask for."""
    return (
        isinstance(quantizer, ActivationQuantizer)
        and isinstance(quantizer.scale, DynamicScale)
        and quantizer.wanted != DynamicScale.kind
    )


def _plain_inputs(model: nn.Module) -> dict[str, QuantLayer]:
    """Layers whose inputs have a step that calibration chose, by path."""
    return {path: layer for path, layer in quantized_layers(model) if has_plain_input(layer)}


def _judge(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    scales: Mapping[str, DynamicScale],
    calls: list[Call],
    seed: int,
    progress: bool,
) -> Judgement:
    """Effects of the own step and of the dynamic one."""

    def changes_at(at: InputAt) -> Iterator[Changes]:
        grid, own = at.quantizer.grid, at.quantizer
        found = (
            fake_quantize(at.x, step_at(each, at.x, at.timestep), grid.low, grid.high).sub_(at.x)
            for each in (own, own.twin(grid, scales[at.path]))
        )
        yield at.path, found, at.slope, at.batch

    counts, label = dict.fromkeys(layers, 2), "judging dynamic steps"
    judged = judge_inputs(model, layers, counts, changes_at, calls, label, seed, progress)
    return judged.balanced_by_first()


def _costs(
    model: nn.Module, layers: Mapping[str, QuantLayer], observations: Observations
) -> dict[str, float]:
    """The time of each reduction, as a share of that of a call."""
    rows, total = input_rows(model, layers, observations.macs)
    found = {}
    for path, layer in layers.items():
        channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
        cost = ROW_COST if isinstance(layer, QuantLinear) else SAMPLE_COST
        found[path] = cost * rows[path] * channels / total
    return found
