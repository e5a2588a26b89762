r"""Rotated inputs: which linear layers get a rotation (``tdquant.layers.rotation``) in front.

    gain = (e + w - e_R - w_R) / cost

with e and e_R the output error that rounding the input causes, as it is and rotated, by the judge,
and w and w_R what rounding the weight adds. A rotated input has steps of its own: curves over time
by the same estimators, judged in the same way. The layers with the largest gain are taken as long
as the sum of their costs is within the budget. The cost is that of the additions, a few for each
value, as a share of a call. Where a layer sees one row a sample the product waits for its weight,
so that rotations are not counted: they gain most there, for the overhead of an operation each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate, choose_grid, make_candidates
from tdquant.calibration.choose import best_candidate, is_static
from tdquant.calibration.fitting import make_scales, wanted_kind
from tdquant.calibration.judge import Judgement
from tdquant.calibration.observe import Observations
from tdquant.calibration.projections import Changes
from tdquant.calibration.protection import FLOAT_COST
from tdquant.calibration.report import RemedyTrial
from tdquant.calibration.time_histograms import TimeHistograms
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing
from tdquant.choice.plain_layers import (
    InputAt,
    column_energy,
    input_rows,
    is_plain,
    judge_inputs,
    weight_error,
)
from tdquant.choice.trial import Trial
from tdquant.choice.within import within
from tdquant.errors import ConversionError
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.layers.base import INPUT
from tdquant.layers.rotation import RotatedLayer
from tdquant.layers.structure import WrappedLayer
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.quantizers import ActivationQuantizer
from tdquant.quantizers.rounding import DecidedWeight
from tdquant.support.progress import track

WORTH = 0.1
"""Share by which rotations have to lower the error of the whole model."""

_OWN = ":as it is"


@dataclass
class _Rotated:
    """A layer, the layer that would be in its place, and what was seen of both inputs.

    Attributes:
        layer: The layer.
        quantizer: That of its input.
        new: The rotated one.
        seen: Histograms of the rotated input.
        energy: Mean squares of the input's channels, as it is and rotated, ``(2, C)``, summed over
            calls.
        error: Mean squared error of the input's channels by its own scale, ``(C,)``, summed.
    """

    layer: QuantLayer
    quantizer: ActivationQuantizer
    new: RotatedLayer
    seen: TimeHistograms = field(default_factory=TimeHistograms)
    energy: Tensor | float = 0.0
    error: Tensor | float = 0.0

    def add(self, x: Tensor, timestep: Tensor) -> None:
        """Takes in an input."""
        quantizer, grid = self.quantizer, self.quantizer.grid
        u = self.new.rotation(x)
        self.seen.update(u, timestep, quantizer.batch)
        self.energy = self.energy + torch.stack([_mean_squares(x), _mean_squares(u)])
        rounded = fake_quantize(x, quantizer.step(x), grid.low, grid.high)
        self.error = self.error + _mean_squares(rounded - x)

    def weight_errors(self) -> Tensor:
        """What rounding the weight adds to the layer's output, as it is and rotated, in units of
        what rounding the input adds by its own scale.
        """
        plain = (self.error * column_energy(self.layer.weight.detach().float())).sum()
        added = map(weight_error, (self.layer, self.new.layer), self.energy)  # type: ignore[arg-type]
        return torch.stack([*added]) / plain.clamp(min=1e-20)


@torch.no_grad()
def try_rotation(
    model: nn.Module,
    observations: Observations,
    trial: Trial,
    budget: float,
    *,
    margin: float = 0.1,
    span: tuple[float, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[RemedyTrial]:
    """Rotates inputs of linear layers where that lowers the output error by more than ``margin``,
    and keeps the rotations if the whole model's error falls, in place.

    Arguments:
        model: A quantized and calibrated model.
        observations: Those of its activations.
        trial: Measures the whole model.
        budget: Largest sum of costs, as a share of the time of a call.
        margin: Share of a layer's output error.
        span: The model's times; those of the observations if None.
        seed: Seed of the judge and of the rotations' signs.
        progress: Draw bars.
    """
    rotated = _rotatable(model, seed)
    if not (rotated and budget > 0):
        return []
    _watch(model, rotated, observations, progress)
    rotated = {path: one for path, one in rotated.items() if one.seen.by_time}
    kinds = {
        p: wanted_kind(p + INPUT, one.quantizer, one.seen, observations.roles)
        for p, one in rotated.items()
    }
    candidates = _candidates(rotated, kinds)
    known = trial.fresh or observations.calls
    judged = _judge(model, rotated, candidates, known, seed, progress)
    choice, gains = dict[str, int](), dict[str, float]()
    for path, one in rotated.items():
        errors = judged.mean(path)
        best = best_candidate(kinds[path], candidates[path], errors, margin)
        own = float(judged.mean(path + _OWN))
        before, after = (own * one.weight_errors()).tolist()
        before, after = before + own, after + float(errors[best])
        if after < (1 - margin) * before:
            choice[path], gains[path] = best, before - after
    chosen = within(budget, gains, _costs(model, rotated, observations))
    if not chosen:
        return []
    times = span or observations.times.resolve()
    picked, quantizers = {p: choice[p] for p in chosen}, {p: rotated[p].quantizer for p in chosen}
    scales, _ = make_scales(quantizers, kinds, candidates, picked, judged, times, seed)
    for path, quantizer in quantizers.items():
        one = rotated[path]
        grid, scale = candidates[path][choice[path]].grid, scales[path]
        one.new.layer.input_quantizer = quantizer.twin(grid, scale.to(one.layer.weight.device))

    def change(apply: bool) -> None:
        for path in chosen:
            old, new = rotated[path].layer, rotated[path].new
            replace_module(model, *((old, new) if apply else (new, old)))

    what = f"rotations of {len(chosen)} inputs"
    return [trial.confirm(model, "rotation", what, change, WORTH)]


def _rotatable(model: nn.Module, seed: int) -> dict[str, _Rotated]:
    """Linear layers whose inputs can be rotated, by path."""
    inside = {id(m) for w in model.modules() if isinstance(w, WrappedLayer) for m in w.modules()}
    found = {}
    for path, layer in quantized_layers(model):
        decided = isinstance(layer.weight_quantizer, DecidedWeight)
        if id(layer) in inside or decided or not is_plain(layer):
            continue
        try:
            new = RotatedLayer.from_quantized(layer, seed=seed)
            found[path] = _Rotated(layer, layer.input_quantizer, new)
        except ConversionError:  # no linear layer, or of no such width
            continue
    return found


def _watch(
    model: nn.Module, rotated: Mapping[str, _Rotated], observations: Observations, progress: bool
) -> None:
    """Lets every layer take in its inputs in the float model."""
    quantizers = {path + INPUT: one.quantizer for path, one in rotated.items()}

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        if x.numel():
            rotated[name.removesuffix(INPUT)].add(x.float(), timestep)
        return x

    calls = observations.calls
    with observing(model, quantizers, look):
        for call in track(calls, "watching rotated inputs", len(calls), progress):
            run(model, call)


def _candidates(
    rotated: Mapping[str, _Rotated], kinds: Mapping[str, str]
) -> dict[str, list[Candidate]]:
    found = {}
    for path, one in rotated.items():
        quantizer = one.quantizer
        grid = choose_grid(one.seen, quantizer.grid, quantizer.symmetric)
        found[path] = make_candidates(one.seen, grid, "auto", is_static(kinds[path]))
    return found


def _judge(
    model: nn.Module,
    rotated: Mapping[str, _Rotated],
    candidates: Mapping[str, list[Candidate]],
    calls: list[Call],
    seed: int,
    progress: bool,
) -> Judgement:
    """Effects of every candidate, and of the own scale under the name of the path and ``_OWN``."""

    def changes_at(at: InputAt) -> Iterator[Changes]:
        rotation, grid = rotated[at.path].new.rotation, at.quantizer.grid
        rounded = fake_quantize(at.x, at.step(), grid.low, grid.high)
        yield at.path + _OWN, iter([rounded.sub_(at.x)]), at.slope, at.batch
        u = rotation(at.x)
        found = (c.quantize(u, at.timestep, at.batch).sub_(u) for c in candidates[at.path])
        yield at.path, found, rotation.undone(at.slope), at.batch

    layers = {path: one.layer for path, one in rotated.items()}
    counts = {path: len(found) for path, found in candidates.items()}
    counts |= {path + _OWN: 1 for path in counts}
    label = "judging rotations"
    judged = judge_inputs(model, layers, counts, changes_at, calls, label, seed, progress)
    return judged.balanced(dict(candidates))


def _costs(
    model: nn.Module, rotated: Mapping[str, _Rotated], observations: Observations
) -> dict[str, float]:
    """The time of each rotation, as a share of that of a call."""
    layers = {path: one.layer for path, one in rotated.items()}
    rows, total = input_rows(model, layers, observations.macs)
    found = {}
    for path, one in rotated.items():
        left, right = one.new.rotation.left, one.new.rotation.right
        additions = rows[path] * one.layer.weight.shape[1] * (len(left) + len(right))
        found[path] = FLOAT_COST * additions / total if rows[path] > 1 else 0.0
    return found


def _mean_squares(x: Tensor) -> Tensor:
    return x.square().flatten(0, -2).mean(0) if x.ndim > 1 else x.square()
