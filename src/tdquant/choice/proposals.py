r"""Input channel factors that are proposed for a layer.

With u = x / s(t), an input in steps of the scale that calibration chose,

    c_j = min(1, h max(max u_j / (n - 1 - z), -min u_j / z))

gives finer steps to channels that need not reach as far as others, with u_j the extremes of the
channel over all samples and times. No step grows: channels that are large are those that the
output depends on, more than their number or their columns tell. One-sided activations have a
small z, which leaves channels no room below zero, so that a larger one is proposed too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.channels import ChannelRanges
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing
from tdquant.choice.plain_layers import column_energy, weight_error
from tdquant.layers import QuantLayer
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import INPUT
from tdquant.layers.split import channel_dimension
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.support.progress import track

VALUES = 256
"""Values of each channel that are looked at."""

HEADROOMS = (1.25, 2.0, 3.0)
"""h, for inputs beyond those of the calls."""

SHIFTS = (0, 1 / 8)
"""What is added to the zero point, as shares of the codes."""

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
        places = torch.linspace(
            0, u.shape[1] - 1, min(count, u.shape[1]), device=u.device, dtype=torch.float32
        ).long()
        self.values.append(u[:, (places + offset) % u.shape[1]])


@torch.no_grad()
def propose_factors(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    calls: list[Call],
    ranges: Mapping[str, ChannelRanges],
    progress: bool,
) -> dict[str, list[Factors]]:
    """Proposes no factors, and some that might serve, for every layer that a call reaches.

    Arguments:
        model: A quantized and calibrated model.
        layers: Path -> layer.
        calls: Calls of the model.
        ranges: Extremes of the channels by the path of the quantizer.
        progress: Draw a bar.
    """
    seen = _watch(model, layers, calls, ranges, progress)
    return {path: propose(layers[path], found) for path, found in seen.items()}


def _reach(layer: QuantLayer, ranges: ChannelRanges) -> tuple[Tensor, Tensor]:
    """Extremes of the channels of an input in steps of its scale, on the device of its layer."""
    quantizer, device = layer.input_quantizer, layer.weight.device
    nothing = torch.zeros((), device=device, dtype=torch.float32)

    def step(time: float) -> float:
        now = torch.tensor(time, device=device, dtype=torch.float32)
        when = now if quantizer.scale.timed else None
        return float(quantizer.scale(when, nothing, quantizer.grid))

    low, high = ranges.in_steps(step)
    return low.to(device), high.to(device)


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


def propose(layer: QuantLayer, seen: _Seen) -> list[Factors]:
    """No factors, and some that might serve, of a layer and its input in steps of its scale."""
    quantizer = layer.input_quantizer
    grid, values = quantizer.grid, torch.cat(seen.values, 1)
    columns = column_energy(layer.weight.detach().float())
    energy = values.square().mean(1)
    one = torch.ones((), dtype=torch.float32)
    error = fake_quantize(values, one, grid.low, grid.high) - values
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
    return [replace(one, weight_error=_weight_error(layer, one, energy) / plain) for one in found]


def _grids(grid: Grid, symmetric: bool) -> Iterator[Grid]:
    """Codes with every zero point that is tried."""
    yield grid
    one_sided = not symmetric and grid.qmin == 0
    for shift in SHIFTS[1:] if one_sided else ():
        zero = grid.zero_point + round(2**grid.bits * shift)
        if zero < 2 ** (grid.bits - 1):
            yield grid.with_zero(zero)


def _weight_error(layer: QuantLayer, factors: Factors, energy: Tensor) -> float:
    inner = BalancedLayer.from_quantized(layer, factors.c).layer
    return float(weight_error(inner, energy / factors.c.square()))
