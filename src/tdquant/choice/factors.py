r"""Input channel factors: which layers get them, and which ones.

    x_hat = c_j s(t) clip(round(x_j / (c_j s(t))), -z, n - 1 - z)

gives every channel j of an input a step of its own, c_j s(t), while the engine sees one step and
one zero point: the division by c_j is in front of the quantizer, the product with the weight's
column j behind it. What is proposed (``tdquant.choice.proposals``) is compared at the model's
output, together with what it does to the rounding of the weight. The calls that judge are along
trajectories that nothing was fitted to. Where there are none, every sample is judged with the
factors that the other half of the samples give: with those of its own half no channel would ever
be clipped, and the least headroom would always look best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.projections import Changes
from tdquant.calibration.report import RemedyTrial
from tdquant.calls.call import Call
from tdquant.choice.plain_layers import InputAt, is_plain, judge_inputs
from tdquant.choice.proposals import Factors, propose_factors
from tdquant.choice.trial import Trial
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import INPUT
from tdquant.layers.split import channel_dimension
from tdquant.layers.structure import WrappedLayer
from tdquant.numerics.fake_quantize import fake_quantize

WORTH = 0.1
"""Share by which they have to lower the error of the whole model: they cost a multiplication of
the input in every call.
"""


def try_factors(
    model: nn.Module,
    observations: Observations,
    trial: Trial,
    *,
    margin: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> list[RemedyTrial]:
    """Gives inputs factors where that lowers the output error by more than ``margin``, and keeps
    them if the whole model's error falls, in place.

    Arguments:
        model: A quantized and calibrated model.
        observations: Those of its activations.
        trial: Measures the whole model.
        margin: Share of a layer's output error.
        seed: Seed of the judge.
        progress: Draw bars.
    """
    calls, ranges = observations.calls, observations.channels
    layers = {p: layer for p, layer in _balanceable(model).items() if p + INPUT in ranges}
    if not layers:
        return []
    proposed = propose_factors(model, layers, calls, ranges, progress)
    if trial.fresh:
        calls = trial.fresh
        proposed = {
            path: [replace(one, halves=one.c.expand(2, -1)) for one in found]
            for path, found in proposed.items()
        }
    chosen = _judge(model, layers, proposed, calls, margin, seed, progress)
    if not chosen:
        return []
    grids = {path: layers[path].input_quantizer.grid for path in chosen}
    made = {
        path: BalancedLayer.from_quantized(layers[path], factors.c)
        for path, factors in chosen.items()
    }

    def change(apply: bool) -> None:
        for path, new in made.items():
            old, quantizer = layers[path], layers[path].input_quantizer  # of both
            replace_module(model, *((old, new) if apply else (new, old)))
            quantizer.grid = chosen[path].grid if apply else grids[path]

    what = f"factors for the channels of {len(chosen)} inputs"
    return [trial.confirm(model, "factors", what, change, WORTH)]


def _balanceable(model: nn.Module) -> dict[str, QuantLayer]:
    """Layers whose inputs can have factors and have none."""
    inside = {id(module.layer) for module in model.modules() if isinstance(module, WrappedLayer)}
    return {
        path: layer
        for path, layer in quantized_layers(model)
        if id(layer) not in inside
        and is_plain(layer)
        and channel_dimension(layer) is not None
        and getattr(layer, "groups", 1) == 1
    }


def _judge(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    proposed: Mapping[str, list[Factors]],
    calls: list[Call],
    margin: float,
    seed: int,
    progress: bool,
) -> dict[str, Factors]:
    """The best factors of each layer by the error at the model's output, of layers for which they
    are better than none by more than ``margin``.
    """

    def changes_at(at: InputAt) -> Iterator[Changes]:
        dims = -1 - (channel_dimension(layers[at.path]) or -1)
        step = at.step()

        def change(factors: Factors) -> Tensor:
            c = _across(factors.halves, at.x, dims)
            u = fake_quantize(at.x / c, step, factors.grid.low, factors.grid.high)
            return u.mul_(c).sub_(at.x)

        yield at.path, map(change, proposed[at.path]), at.slope, at.batch

    counts = {path: len(found) for path, found in proposed.items()}
    own = {path: layers[path] for path in proposed}
    judged = judge_inputs(model, own, counts, changes_at, calls, "judging factors", seed, progress)
    judged = judged.balanced_by_first()
    chosen = {}
    for path in judged.effects:
        errors = judged.mean(path)
        plain = float(errors[0])
        whole = [
            float(e) + plain * one.weight_error
            for e, one in zip(errors, proposed[path], strict=True)
        ]
        best = min(range(len(whole)), key=whole.__getitem__)
        if whole[best] < (1 - margin) * whole[0]:
            chosen[path] = proposed[path][best]
    return chosen


def _across(halves: Tensor, x: Tensor, dims: int) -> Tensor:
    """Factors for every sample of x by the half of the samples that it does not belong to."""
    rows = halves[1 - torch.arange(len(x), device=halves.device) % 2]
    return rows.reshape(len(x), *[1] * (x.ndim - 2 - dims), -1, *[1] * dims)
