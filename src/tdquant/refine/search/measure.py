r"""Measures sensitivity: all layers, operands, widths and kinds of scale in one pass over calls.

Rounding a weight W changes its layer's output by ``dy = layer(x, W_hat) - layer(x, W)``, rounding
an input x changes it by ``dx = x_hat - x``. The squared output errors that these cause come from
projections of the model's output, sample by sample: see ``tdquant.calibration.projections``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate, choose_grid, make_candidates
from tdquant.calibration.concatenations import splittable, with_parts
from tdquant.calibration.observe import Observations, observed
from tdquant.calibration.projections import Changes, Effects, LayerAt, project
from tdquant.calls.call import Call
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError, RecipeError
from tdquant.families.roles import roles_of
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.base import INPUT
from tdquant.layers.structure import names_of
from tdquant.numerics.grid import MAX_BITS, MIN_BITS, Grid
from tdquant.quantizers import (
    ActivationQuantizer,
    NoiseWeight,
    WeightQuantizer,
    activation_quantizers,
)
from tdquant.quantizers.starting import start_steps
from tdquant.recipe import FLOAT, Recipe
from tdquant.refine.search.sensitivity import ATTENTION, EDGE, KINDS, TIME, LayerFacts, Sensitivity
from tdquant.scales import NoiseScale
from tdquant.state import recipe_of
from tdquant.support.progress import track
from tdquant.support.restoring import with_gradients

TIMES = 16
"""Ranges of time that are kept apart."""


@with_gradients
def sensitivity(
    model: nn.Module,
    batches: Iterable[Call] | Observations,
    *,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8),
    inputs: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Measures what rounding each operand of each layer alone does to the model's output.

    The model runs in float, forwards and backwards, over the calls that were kept for judging.

    Arguments:
        model: A model that ``quantize`` returned, calibrated or not, at any widths; what is
            quantized in it is measured.
        batches: Calls, as for ``calibrate``, or what ``observe`` returned.
        bits: Widths to measure, beside those of the model.
        inputs: Measure inputs too. Without them it takes a fraction of the time, and the result is
            that of the same recipe with ``activations=32``.
        seed: Seed of all draws.
        progress: Draw bars.

    Raises:
        CalibrationError: As ``calibrate``; or nothing in the model can be measured, as in a frozen
            one.
        ConversionError: The model is not quantized.
        RecipeError: Widths out of range.
    """
    clock_of(model)
    if not bits or not all(MIN_BITS <= b <= MAX_BITS for b in bits):
        fix = f"from {MIN_BITS} to {MAX_BITS} bits"
        raise RecipeError(f"widths {list(bits)}", where="bits", fix=fix)
    _, weights, quantizers = _operands(model)
    if not weights and not (inputs and quantizers):
        raise CalibrationError(
            "nothing to measure",
            where=type(model).__name__,
            why="no weight and no activation is quantized, or the model is frozen",
            fix="tdq.quantize(model, recipe), and sensitivity before tdq.freeze",
        )
    batches = observed(model, batches, seed, progress)
    layers, weights, quantizers = _operands(model)  # the first calls decide which they are
    recipe = recipe_of(model) or Recipe()
    watched = quantizers
    if not inputs:
        quantizers, recipe = {}, replace(recipe, activations=FLOAT)
    has = [w.grid.bits for w in weights.values()] + [q.grid.bits for q in quantizers.values()]
    widths = tuple(sorted({*bits, *has}))
    parts = splittable(model, quantizers, batches.parts)
    owners = with_parts(quantizers, parts)
    candidates = {}
    for name, q in track(owners.items(), "making curves", len(owners), progress):
        seen = batches.seen[name]
        grids = [choose_grid(seen, Grid.signed(b), q.symmetric) for b in widths]
        candidates[name] = [c for grid in grids for c in make_candidates(seen, grid, "auto")]
    roundings = {
        path: [rounding_at(layers[path].weight, quantizer, b, recipe, path) for b in widths]
        for path, quantizer in weights.items()
    }
    of_inputs = Effects({name: len(found) for name, found in candidates.items()})
    of_weights = Effects({path: len(widths) for path in roundings})
    macs: dict[str, int] = {}
    times: list[Tensor] = []
    calls = track(batches.calls, "measuring layers", show=progress)
    local = ""
    for projection in project(model, watched, calls, seed, layers):
        local = projection.local
        if quantizers:
            of_inputs.add(projection, projection.input_changes(candidates, parts))
        of_weights.add(projection, _weight_changes(projection.outputs, roundings))
        if not times:
            for path, layer, _, y, *_ in projection.outputs:
                macs[path] = macs.get(path, 0) + y[0].numel() * layer.weight[0].numel()
        times.append(projection.times)
    by_input, by_weight = of_inputs.table(), of_weights.table()

    def least(name: str, bits: int, kind: str) -> Tensor:
        """The least effect of a quantizer, ``(S,)``: of the whole input, or of its parts where
        that is less.
        """
        options = [[name], *([parts[name].names(name)] if name in parts else [])]
        found = [_least_effect(candidates, by_input, places, bits, kind) for places in options]
        return min(found, key=lambda effect: float(effect.square().mean()))

    def owner(path: str) -> str:
        return names_of(model, path)[0]  # a rewritten layer is one of the float model

    middles, counts, share = _time_ranges(torch.cat(times))

    def over_time(effects: Iterable[Tensor]) -> Tensor:
        """``(W, K)`` from effects ``(S,)`` at each width."""
        return torch.stack([share @ e.square() for e in effects])

    facts: dict[str, LayerFacts] = {}
    errors: dict[str, Tensor] = {}
    activations: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    roles = {owner(path): role for path, role in _roles(model).items()}
    reached = [owner(p) for p in weights] + [owner(n.removesuffix(INPUT)) for n in quantizers]
    for path in dict.fromkeys(reached):
        own = [p for p in weights if owner(p) == path]
        names = [n for n in quantizers if owner(n.removesuffix(INPUT)) == path]
        if own:
            errors[path] = over_time(torch.stack([by_weight[p] for p in own]).sum(0).unbind(1))
        for kind in KINDS if names else ():
            activations[kind][path] = over_time(
                torch.stack([least(n, b, kind) for n in names]).sum(0) for b in widths
            )
        facts[path] = LayerFacts(
            weights=sum(layers[p].weight.numel() for p in own),
            macs=sum(count for p, count in macs.items() if owner(p) == path),
            weight_bits=weights[own[0]].grid.bits if own else FLOAT,
            activation_bits=quantizers[names[0]].grid.bits if names else FLOAT,
            role=roles.get(path, ATTENTION if path in quantizers else ""),
            columns=sum(layers[p].weight[0].numel() for p in own),
        )
    return Sensitivity(widths, middles, counts, facts, errors, activations, recipe, local)


def _operands(
    model: nn.Module,
) -> tuple[dict[str, QuantLayer], dict[str, WeightQuantizer], dict[str, ActivationQuantizer]]:
    """The quantized layers, their weights and the activations that are quantized, by path."""
    layers = dict(quantized_layers(model))
    weights = {
        path: layer.weight_quantizer
        for path, layer in layers.items()
        if isinstance(layer.weight_quantizer, WeightQuantizer)
    }
    return layers, weights, dict(activation_quantizers(model))


def group_at(quantizer: nn.Module, bits: int, recipe: Recipe) -> int:
    """Inputs that share a multiplier, by the recipe, in a weight of another width."""
    return recipe.group_of(bits, NoiseScale.kind if isinstance(quantizer, NoiseWeight) else "")


def rounding_at(
    weight: Tensor, quantizer: WeightQuantizer, bits: int, recipe: Recipe, path: str
) -> WeightQuantizer:
    """Rounding to nearest by the grid that the recipe has for a weight at another width.

    Arguments:
        weight: The weight.
        quantizer: What quantizes it now.
        bits: The other width.
        recipe: The recipe.
        path: Of the layer, for errors.
    """
    grid = Grid.signed(bits, narrow=True)
    group = group_at(quantizer, bits, recipe)
    return WeightQuantizer(grid, *start_steps(weight, grid, quantizer.step.ndim > 0, group, path))


def _weight_changes(
    outputs: Iterable[LayerAt], roundings: Mapping[str, list[WeightQuantizer]]
) -> Iterator[Changes]:
    """What rounding a weight at every width changes in its layer's output."""
    for path, layer, x, y, g, batch in outputs:
        if path in roundings:
            rounded = (quantizer(layer.weight) for quantizer in roundings[path])
            changes = (layer.combine(x, weight).sub_(y) for weight in rounded)
            yield path, changes, g, batch


def _least_effect(
    candidates: Mapping[str, list[Candidate]],
    effects: Mapping[str, Tensor],
    places: Sequence[str],
    bits: int,
    kind: str,
) -> Tensor:
    """The effect of the best candidates of a width and kind at all of ``places``, ``(S,)``."""

    def best(place: str) -> Tensor:
        found = [
            effect
            for c, effect in zip(candidates[place], effects[place].T, strict=True)
            if c.grid.bits == bits and kind in ("temporal", c.kind)
        ]
        return min(found, key=lambda effect: float(effect.square().mean()))

    return torch.stack([best(place) for place in places]).sum(0)


def _time_ranges(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middles (K,) and samples (K,) of the ranges that have any, and the matrix (K, S) that takes
    the mean in each.
    """
    unique = times.unique()
    if len(unique) > TIMES:
        low, high = float(unique[0]), float(unique[-1])
        place = ((times - low) / (high - low) * TIMES).long().clamp(max=TIMES - 1)
        middles = low + (torch.arange(TIMES, dtype=torch.float32) + 0.5) / TIMES * (high - low)
    else:
        place, middles = torch.searchsorted(unique, times), unique
    member = nn.functional.one_hot(place, len(middles)).float()
    counts = member.sum(0)
    used = counts > 0
    return middles[used], counts[used], (member / counts.clamp(min=1)).T[used]


def _roles(model: nn.Module) -> dict[str, str]:
    """Layers that the recipe sets apart: the time path, and the first and last layers."""
    roles = roles_of(model)
    return dict.fromkeys(roles.first | roles.last, EDGE) | dict.fromkeys(roles.time_path, TIME)
