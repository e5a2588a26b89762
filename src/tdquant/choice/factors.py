r"""Input channel factors: which layers get them, and which ones.

    x_hat = c_j s(t) clip(round(x_j / (c_j s(t))), -z, n - 1 - z)

gives every channel j of an input a step of its own, c_j s(t), while the engine sees one step and
one zero point: the division by c_j is in front of the quantizer, the product with the weight's
column j behind it. With u = x / s(t) at the scale that calibration chose,

    c_j = min(1, h max(max u_j / (n - 1 - z), -min u_j / z))

gives finer steps to channels that need not reach as far as others, with u_j the extremes of the
channel over all samples and times. No step grows: channels that are large are those that the
output depends on, more than their number or their columns tell. One-sided activations have a
small z, which leaves channels no room below zero, so that a larger one is proposed too.

Proposals are compared at the model's output, together with what they do to the rounding of the
weight. Every sample is judged with the factors that the other half of the samples give: with those
of its own half no channel would ever be clipped, and the least headroom would always look best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.channels import ChannelRanges
from tdquant.calibration.observe import Observations
from tdquant.calibration.projections import Changes, Effects, Projection, project
from tdquant.calibration.report import RemedyTrial
from tdquant.calibration.timing import TimeBins
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing
from tdquant.choice.trial import Trial
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import INPUT
from tdquant.layers.split import channel_dimension
from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, ShiftedWeight, WeightQuantizer
from tdquant.scales import DynamicScale
from tdquant.support.progress import track

VALUES = 256
"""Values of each channel that are looked at."""

HEADROOMS = (1.25, 2.0, 3.0)
"""h, for inputs beyond those of the calls."""

SHIFTS = (0, 1 / 8)
"""What is added to the zero point, as shares of the codes."""

WORTH = 0.2
"""Share by which they have to lower the error of the whole model: they cost a multiplication of
the input in every call, and channels that the trial's trajectories did not show may be clipped.
"""

SPREAD = 32.0
"""Largest factor over the least: columns of the weight differ by as much more."""


@dataclass(frozen=True)
class Factors:
    """Factors of one input.

    Attributes:
        c: ``(C,)``, positive.
        grid: Codes behind the division.
        halves: What ``c`` would be by each half of the samples, ``(2, C)``.
        weight_error: What the rounding of the weight adds to the layer's output, in units of what
            that of the input adds without factors.
    """

    c: Tensor
    grid: Grid
    halves: Tensor
    weight_error: float = 0.0


@dataclass
class _Seen:
    """What an input was, in steps of its scale.

    Attributes:
        low, high: Extremes of its channels in both halves of the samples, ``(2, C)``.
        values: Some values of its channels, ``(C, N)``.
    """

    low: Tensor
    high: Tensor
    values: list[Tensor] = field(default_factory=list)

    def add(self, u: Tensor, count: int, offset: int) -> None:
        """Takes in an input with its channels in front, ``(C, N)``."""
        places = torch.linspace(0, u.shape[1] - 1, min(count, u.shape[1]), device=u.device).long()
        self.values.append(u[:, (places + offset) % u.shape[1]])


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
    seen = _watch(model, layers, calls, ranges, progress)
    proposals = {path: propose(layers[path], found) for path, found in seen.items()}
    chosen = _judge(model, layers, proposals, calls, margin, seed, progress)
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
    inside = {id(module.layer) for module in model.modules() if isinstance(module, BalancedLayer)}
    return {
        path: layer
        for path, layer in quantized_layers(model)
        if id(layer) not in inside
        and type(layer.input_quantizer) is ActivationQuantizer
        and not isinstance(layer.input_quantizer.scale, DynamicScale)
        and type(layer.weight_quantizer) in (WeightQuantizer, ShiftedWeight)
        and channel_dimension(layer) is not None
        and getattr(layer, "groups", 1) == 1
    }


def _reach(layer: QuantLayer, ranges: ChannelRanges) -> tuple[Tensor, Tensor]:
    """Extremes of the channels of an input in steps of its scale, on the device of its layer."""
    quantizer, device = layer.input_quantizer, layer.weight.device
    nothing = torch.zeros((), device=device)

    def step(time: float) -> float:
        when = torch.tensor(time, device=device) if quantizer.scale.timed else None
        return float(quantizer.scale(when, nothing, quantizer.grid))

    low, high = ranges.in_steps(step)
    return low.to(device), high.to(device)


@torch.no_grad()
def _watch(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    calls: list[Call],
    ranges: Mapping[str, ChannelRanges],
    progress: bool,
) -> dict[str, _Seen]:
    """Values of the inputs in the float model."""
    found = {path: _Seen(*_reach(layers[path], ranges[path + INPUT])) for path in layers}
    quantizers = {path + INPUT: layer.input_quantizer for path, layer in layers.items()}
    count, number = max(VALUES // len(calls), 4), 0

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        path = name.removesuffix(INPUT)
        dimension: Any = channel_dimension(layers[path])
        u = x.float() / quantizers[name].step(x)
        found[path].add(u.movedim(dimension, 0).flatten(1), count, number)
        return x

    with observing(model, quantizers, look):
        for call in track(calls, "watching channels", len(calls), progress):
            run(model, call)
            number += 1
    return {path: seen for path, seen in found.items() if seen.values}


@torch.no_grad()
def propose(layer: QuantLayer, seen: _Seen) -> list[Factors]:
    """No factors, and some that might serve, of a layer and its input in steps of its scale."""
    quantizer = layer.input_quantizer
    grid, values = quantizer.grid, torch.cat(seen.values, 1)
    weight = layer.weight.detach().float()
    columns = weight.square().sum(0).reshape(weight.shape[1], -1).sum(1)
    energy = values.square().mean(1)
    error = fake_quantize(values, torch.ones(()), grid.low, grid.high) - values
    plain = float((error.square().mean(1) * columns).sum()) or 1e-20
    ones = torch.ones_like(energy)
    found = [Factors(ones, grid, ones.expand(2, -1))]
    for codes in _grids(grid, quantizer.symmetric):
        above = seen.high / max(codes.high, 1)
        below = seen.low / codes.low if codes.low else torch.zeros_like(above)
        reach = above.maximum(below)
        for headroom in HEADROOMS:
            halves = (headroom * torch.where(reach > 0, reach, 1.0)).clamp(1 / SPREAD, 1)
            found.append(Factors(halves.amax(0), codes, halves))
    return [
        replace(one, weight_error=_weight_error(layer, one.c, energy) / plain) for one in found
    ]


def _grids(grid: Grid, symmetric: bool) -> Iterator[Grid]:
    """Codes with every zero point that is tried."""
    yield grid
    one_sided = not symmetric and grid.qmin == 0
    for shift in SHIFTS[1:] if one_sided else ():
        zero = grid.zero_point + round(2**grid.bits * shift)
        if zero < 2 ** (grid.bits - 1):
            yield grid.with_zero(zero)


def _weight_error(layer: QuantLayer, c: Tensor, energy: Tensor) -> float:
    """Mean squared error of the layer's output that rounding the weight causes, channels taken to
    be independent.
    """
    inner: Any = BalancedLayer.from_quantized(layer, c).layer
    error = (inner.weight_quantizer(inner.weight) - inner.weight).detach().float()
    each = error.square().sum(0).reshape(error.shape[1], -1).sum(1)
    return float((each * energy / c.square()).sum())


def _judge(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    proposals: Mapping[str, list[Factors]],
    calls: list[Call],
    margin: float,
    seed: int,
    progress: bool,
) -> dict[str, Factors]:
    """The best factors of each layer by the error at the model's output, of layers for which they
    are better than none by more than ``margin``.
    """
    quantizers = {path + INPUT: layers[path].input_quantizer for path in proposals}

    def changes(projection: Projection) -> Iterable[Changes]:
        for name, x, timestep, slope, batch in projection.inputs:
            path = name.removesuffix(INPUT)
            dims = -1 - (channel_dimension(layers[path]) or -1)
            step = _step_at(quantizers[name], x, timestep)

            def change(
                factors: Factors, x: Tensor = x, dims: int = dims, step: Tensor = step
            ) -> Tensor:
                c = _across(factors.halves, x, dims)
                u = fake_quantize(x / c, step, factors.grid.low, factors.grid.high)
                return u.mul_(c).sub_(x)

            yield path, map(change, proposals[path]), slope, batch

    effects = Effects({path: len(found) for path, found in proposals.items()})
    times: list[Tensor] = []
    shown = track(calls, "judging factors", len(calls), progress)
    for projection in project(model, quantizers, shown, seed):
        effects.add(projection, changes(projection))
        times.append(projection.times)
    table, when = effects.table(), torch.cat(times)
    total = sum(effect[:, 0].square() for effect in table.values())
    bins = TimeBins(when)
    bins.balance(bins.sums(when, torch.as_tensor(total)))
    weights = bins.weight(when)
    chosen = {}
    for path, effect in table.items():
        errors = (effect.square() * weights[:, None]).mean(0)
        own = float(errors[0])
        whole = [
            float(e) + own * one.weight_error
            for e, one in zip(errors, proposals[path], strict=True)
        ]
        best = min(range(len(whole)), key=whole.__getitem__)
        if whole[best] < (1 - margin) * whole[0]:
            chosen[path] = proposals[path][best]
    return chosen


def _across(halves: Tensor, x: Tensor, dims: int) -> Tensor:
    """Factors for every sample of x by the half of the samples that it does not belong to."""
    rows = halves[1 - torch.arange(len(x), device=halves.device) % 2]
    return rows.reshape(len(x), *[1] * (x.ndim - 2 - dims), -1, *[1] * dims)


def _step_at(quantizer: ActivationQuantizer, x: Tensor, timestep: Tensor) -> Tensor:
    """The step of an input outside of a call."""
    scale = quantizer.scale
    with torch.no_grad():
        step = scale(timestep if scale.timed else None, x, quantizer.grid)
    return expand_scale(step, x, quantizer.batch)
