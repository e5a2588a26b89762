r"""Measuring sensitivity: all layers, operands, widths and kinds of scale in one pass over calls.

Rounding a weight W changes its layer's output by ``dy = layer(x, W_hat) - layer(x, W)``, rounding
an input x changes it by ``dx = x_hat - x``. With r a random normal projection of the model's
output, one backward pass gives ``J^T r`` at the inputs and outputs of all layers, and

    E_r[(r^T J dx)^2] = |J dx|^2,    E_r[(r^T J dy)^2] = |J dy|^2

are the squared output errors, sample by sample (see ``tdquant.calibration.judge``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate, choose_grid, make_candidates
from tdquant.calibration.concatenations import SUFFIX, Concatenation, splittable, with_parts
from tdquant.calibration.judge import InputAt, LayerAt, input_effects, pieces, project
from tdquant.calibration.observe import Observations, observed
from tdquant.calls.call import Call
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError, RecipeError
from tdquant.families import family_of
from tdquant.layers import QUANTIZED, QuantLayer, SplitLayer, quantized_layers, structured_layers
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import MAX_BITS, MIN_BITS, Grid
from tdquant.quantization import edges
from tdquant.quantizers import ActivationQuantizer, WeightQuantizer, activation_quantizers
from tdquant.quantizers.weight import along_channels, mse_step
from tdquant.recipe import FLOAT, Recipe
from tdquant.refine.search.sensitivity import ATTENTION, EDGE, KINDS, TIME, LayerFacts, Sensitivity
from tdquant.state import recipe_of
from tdquant.support.patterns import matching
from tdquant.support.progress import track

Weighted = tuple[QuantLayer, WeightQuantizer]
"""A layer, and the quantizer of its weight."""

TIMES = 16
"""Ranges of time that are kept apart."""


def sensitivity(
    model: nn.Module,
    batches: Iterable[Call] | Observations,
    *,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8),
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Measures what rounding each operand of each layer alone does to the model's output.

    The model runs in float, forwards and backwards, over the calls that were kept for judging.

    Arguments:
        model: What ``quantize`` returned, calibrated or not, of any widths: what is quantized in
            it is measured.
        batches: Calls as ``calibrate`` takes them, or what ``observe`` returned.
        bits: Widths to measure, beside those that the model has.
        seed: Seed of all draws.
        progress: Draw bars.

    Raises:
        CalibrationError: As ``calibrate``; or nothing in the model can be measured, as in one that
            is frozen.
        ConversionError: The model is not quantized.
        RecipeError: Widths out of range.
    """
    clock_of(model)
    wrong = [b for b in bits if not MIN_BITS <= b <= MAX_BITS]
    if wrong or not bits:
        raise RecipeError(
            f"widths {list(bits)}", where="bits", fix=f"from {MIN_BITS} to {MAX_BITS} bits"
        )
    layers = {
        path: (layer, layer.weight_quantizer)
        for path, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, WeightQuantizer)
    }
    quantizers = dict(activation_quantizers(model))
    if not layers and not quantizers:
        raise CalibrationError(
            "nothing to measure",
            where=type(model).__name__,
            why="no weight and no activation is quantized, or the model is frozen",
            fix="tdq.quantize(model, recipe), and sensitivity before tdq.freeze",
        )
    batches = observed(model, batches, seed, progress)
    has = [weight.grid.bits for _, weight in layers.values()]
    has += [q.grid.bits for q in quantizers.values()]
    widths = tuple(sorted({*bits, *has}))
    parts = splittable(model, quantizers, batches.parts)
    curves = _Curves(quantizers, batches, parts, widths, progress)
    weights = _Weights(layers, widths)
    macs: dict[str, int] = {}
    times: list[Tensor] = []
    calls = track(batches.calls, "measuring layers", len(batches.calls), progress)
    for projection in project(model, quantizers, calls, seed, dict(quantized_layers(model))):
        size = projection.size**0.5
        curves.update(projection.inputs, len(projection.timestep), size)
        weights.update(projection.outputs, len(projection.timestep), size)
        if not times:
            for path, layer, _, y, _ in projection.outputs:
                macs[path] = macs.get(path, 0) + y[0].numel() * layer.weight[0].numel()
        times.append(projection.timestep)
    if not times:
        raise CalibrationError("no calls to measure by", where="batches")
    return _summed(
        model, layers, quantizers, widths, torch.cat(times), weights.effects(), curves, macs
    )


class _Weights:
    """Effects of rounded weights, ``(S, W)`` by layer."""

    def __init__(self, layers: Mapping[str, Weighted], widths: tuple[int, ...]) -> None:
        self._steps = {
            path: [
                (grid, mse_step(layer.weight, grid, weight.step.ndim > 0, path))
                for grid in (Grid.signed(b, narrow=True) for b in widths)
            ]
            for path, (layer, weight) in layers.items()
        }
        self._rows: dict[str, list[Tensor]] = {path: [] for path in layers}

    @torch.no_grad()
    def update(self, outputs: Sequence[LayerAt], batch: int, size: float) -> None:
        total = {p: torch.zeros(batch, len(steps)) for p, steps in self._steps.items()}
        for path, layer, x, y, g in outputs:
            for i, (grid, step) in enumerate(self._steps.get(path, ())):
                scale = along_channels(step, layer.weight)
                rounded = fake_quantize(layer.weight, scale, grid.low, grid.high)
                change = layer.combine(x, rounded).sub_(y).mul_(g)
                total[path][:, i] += change.reshape(batch, -1).sum(1).float().cpu()
        for path, effect in total.items():
            self._rows[path].append(effect / size)

    def effects(self) -> dict[str, Tensor]:
        return {path: torch.cat(rows) for path, rows in self._rows.items()}


class _Curves:
    """Effects of rounded inputs under every candidate curve, ``(S, C)`` by width and place."""

    def __init__(
        self,
        quantizers: Mapping[str, ActivationQuantizer],
        observations: Observations,
        parts: dict[str, Concatenation],
        widths: tuple[int, ...],
        progress: bool,
    ) -> None:
        self._parts = parts
        owners = with_parts(quantizers, parts)
        self._curves: dict[str, list[tuple[Grid, list[Candidate]]]] = {}
        self._rows: dict[str, list[list[Tensor]]] = {}
        for name, q in track(owners.items(), "making curves", len(owners), progress):
            seen = observations.seen[name]
            grids = [choose_grid(seen, Grid.signed(b), q.symmetric) for b in widths]
            self._curves[name] = [(grid, make_candidates(seen, grid, "auto")) for grid in grids]
            self._rows[name] = [[] for _ in widths]

    def update(self, inputs: Sequence[InputAt], batch: int, size: float) -> None:
        total = {
            name: [torch.zeros(len(cs), batch) for _, cs in by_width]
            for name, by_width in self._curves.items()
        }
        for name, x, t, g in inputs:
            for place, piece, slope in pieces(name, x, g, self._parts):
                for i, (grid, candidates) in enumerate(self._curves[place]):
                    total[place][i] += input_effects(piece, slope, t, grid, candidates, batch)
        for name, found in total.items():
            for rows, effect in zip(self._rows[name], found, strict=True):
                rows.append(effect.T / size)

    def effect(self, name: str, width: int, kind: str) -> Tensor:
        """The least effect of the quantizer at the width of that index, ``(S,)``: of the whole
        input, or of its parts where that is less.
        """
        whole = self._best(name, width, kind)
        if name in self._parts:
            places = self._parts[name].names(name)
            apart = torch.stack([self._best(p, width, kind) for p in places]).sum(0)
            if apart.square().mean() < whole.square().mean():
                return apart
        return whole

    def _best(self, name: str, width: int, kind: str) -> Tensor:
        _, candidates = self._curves[name][width]
        effects = torch.cat(self._rows[name][width])
        allowed = [i for i, c in enumerate(candidates) if kind in ("temporal", c.kind)]
        return effects[:, min(allowed, key=lambda i: float(effects[:, i].square().mean()))]


def _summed(
    model: nn.Module,
    layers: Mapping[str, Weighted],
    quantizers: Mapping[str, ActivationQuantizer],
    widths: tuple[int, ...],
    times: Tensor,
    weights: Mapping[str, Tensor],
    curves: _Curves,
    macs: Mapping[str, int],
) -> Sensitivity:
    """Everything by the layer of the float model that it belongs to, over ranges of time."""
    # A split layer is one of the float model; a balanced one has one inside.
    owners = [path for path, layer in structured_layers(model) if isinstance(layer, SplitLayer)]

    def owner(path: str) -> str:
        return next((o for o in owners if path.startswith(f"{o}.")), path)

    places = {path: owner(path) for path in layers}
    inputs = {name: owner(name.removesuffix(SUFFIX)) for name in quantizers}
    middles, counts, share = _time_ranges(times)

    def by_time(effects: list[Tensor]) -> Tensor:
        """``(W, K)`` from effects ``(S,)`` at each width."""
        return torch.stack([share @ e.square() for e in effects])

    facts: dict[str, LayerFacts] = {}
    by_weight: dict[str, Tensor] = {}
    activations: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    roles = _roles(model)
    for path in dict.fromkeys([*places.values(), *inputs.values()]):
        own = [p for p, o in places.items() if o == path]
        quantized = [n for n, o in inputs.items() if o == path]
        if own:
            total = torch.stack([weights[p] for p in own]).sum(0)
            by_weight[path] = by_time(list(total.unbind(1)))
        for kind in KINDS if quantized else ():
            activations[kind][path] = by_time(
                [
                    torch.stack([curves.effect(n, i, kind) for n in quantized]).sum(0)
                    for i in range(len(widths))
                ]
            )
        facts[path] = LayerFacts(
            sum(layers[p][0].weight.numel() for p in own),
            sum(macs.get(p, 0) for p in macs if owner(p) == path),
            layers[own[0]][1].grid.bits if own else FLOAT,
            quantizers[quantized[0]].grid.bits if quantized else FLOAT,
            roles.get(path, ATTENTION if path in quantizers else ""),
        )
    recipe = recipe_of(model) or Recipe()
    return Sensitivity(widths, middles, counts, facts, by_weight, activations, recipe)


def _time_ranges(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middles (K,) and samples (K,) of the ranges that have any, and the matrix (K, S) that takes
    the mean in each.
    """
    unique = times.unique()
    if len(unique) > TIMES:
        low, high = float(unique[0]), float(unique[-1])
        place = ((times - low) / (high - low) * TIMES).long().clamp(max=TIMES - 1)
        middles = low + (torch.arange(TIMES) + 0.5) / TIMES * (high - low)
    else:
        place, middles = torch.searchsorted(unique, times), unique
    member = nn.functional.one_hot(place, len(middles)).float()
    counts = member.sum(0)
    used = counts > 0
    return middles[used], counts[used], (member / counts.clamp(min=1)).T[used]


def _roles(model: nn.Module) -> dict[str, str]:
    """What the recipe sets apart: the time path, and the first and last layers."""
    family = family_of(model)
    paths = [
        path
        for path, m in model.named_modules()
        if path and (isinstance(m, QuantLayer) or type(m) in QUANTIZED)
    ]
    first, last = edges(model, paths, family)
    roles = dict.fromkeys(first | last, EDGE)
    timed = [p for p in paths if matching(p, family.time_path)]
    return roles | dict.fromkeys(timed, TIME)
