r"""Protected inputs: more bits for the few activations whose rounding reaches the output most.

    gain = (e(b) - e(b_wide)) / cost

with e the output error of the input's best scale, by the judge. The inputs with the largest gain
are taken as long as the sum of their costs is within the budget. Codes of up to 8 bits run on the
same kernels, so that 8 bits take no time; their cost is the layer's share of all
multiply-accumulates, which keeps a recipe of few bits what it says. Inputs that have 8 bits or
more are left in float, where engines multiply at about a third of the speed: three times the
share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from tdquant.calibration.candidates import choose_grid, make_candidates
from tdquant.calibration.choose import is_static
from tdquant.calibration.concatenations import Concatenation, splittable, with_parts
from tdquant.calibration.fitting import wanted_kind
from tdquant.calibration.judge import Judgement, judge
from tdquant.calibration.observe import Observations
from tdquant.calibration.report import ProtectedInput
from tdquant.layers.base import INPUT
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.recipe import FLOAT, Recipe
from tdquant.scales import DynamicScale
from tdquant.support.patterns import matching
from tdquant.support.progress import track

WIDE = 8
"""Bits of a protected input that has fewer."""

FLOAT_COST = 3.0
"""Time of a multiply-accumulate in float, in those of 8 bits."""

LEAST = 0.01
"""Least share of the error of all inputs that a protected one saves."""


def choose_protected(
    model: nn.Module,
    observations: Observations,
    recipe: Recipe,
    budget: float,
    spare: float = math.inf,
    *,
    estimator: str = "auto",
    split: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> list[ProtectedInput]:
    """Chooses the inputs to protect; the model stays as it is.

    Arguments:
        model: A quantized model.
        observations: Those of its activations.
        recipe: Its recipe. Inputs whose bits an override sets are left out.
        budget: Largest sum of costs.
        spare: Most that inputs in float may add to the time of a call, as a share of the float
            model's.
        estimator: As for ``calibrate``.
        split: As for ``calibrate``.
        seed: Seed of the judge.
        progress: Draw a bar.
    """
    seen = observations.seen
    pending = {
        n: q for n, q in activation_quantizers(model) if not isinstance(q.scale, DynamicScale)
    }
    wide = _protectable(pending, recipe)
    total = sum(observations.macs.values())
    if not (wide and total and budget > 0):
        return []
    parts = splittable(model, pending, observations.parts) if split else {}
    wanted = {n: wanted_kind(n, q, seen[n], observations.roles) for n, q in pending.items()}
    kinds = {p: wanted[n] for n, c in parts.items() for p in c.names(n)} | wanted

    owners = with_parts(pending, parts)
    own = {n: choose_grid(seen[n], q.grid, q.symmetric) for n, q in owners.items()}
    coded = {n: pending[n] for n, bits in wide.items() if bits != FLOAT}
    wider = {
        n: choose_grid(seen[n], Grid.signed(WIDE), q.symmetric)
        for n, q in with_parts(coded, {n: c for n, c in parts.items() if n in coded}).items()
    }
    candidates, counts = {}, {}
    for n in owners:
        static = is_static(kinds[n])
        found = make_candidates(seen[n], own[n], estimator, static)
        counts[n] = len(found)
        more = make_candidates(seen[n], wider[n], estimator, static) if n in wider else []
        candidates[n] = [*found, *more]
    shown = track(observations.calls, "judging inputs", show=progress)
    judged = judge(model, pending, candidates, shown, seed, parts)
    judged = judged.balanced({n: candidates[n][: counts[n]] for n in pending})
    narrow = judged.only({n: slice(0, counts[n]) for n in owners})
    broad = judged.only({n: slice(counts[n], None) for n in wider})
    errors = {n: _least(n, narrow, parts) for n in pending}
    everything = sum(errors.values())
    found_inputs = []
    for n, bits in wide.items():
        share = observations.macs.get(n.removesuffix(INPUT), 0) / total
        saved = errors[n] - (0.0 if bits == FLOAT else _least(n, broad, parts))
        if share and saved > LEAST * everything:
            cost = share * (FLOAT_COST if bits == FLOAT else 1.0)
            path = n.removesuffix(INPUT)
            found_inputs.append(ProtectedInput(path, bits, saved / everything, cost))
    chosen: list[ProtectedInput] = []
    for one in sorted(found_inputs, key=lambda one: -one.saved / one.cost):
        after = [*chosen, one]
        if sum(o.cost for o in after) <= budget and sum(map(_added_time, after)) <= spare:
            chosen = after
    return chosen


def put_bits(model: nn.Module, inputs: list[ProtectedInput]) -> None:
    """Gives inputs of layers, not yet calibrated, their bits, in place."""
    for one in inputs:
        layer = model.get_submodule(one.path)
        if one.bits == FLOAT:
            layer.input_quantizer = nn.Identity()
        else:
            quantizer = layer.input_quantizer
            assert isinstance(quantizer, ActivationQuantizer)
            quantizer.grid = Grid.signed(one.bits)


def _added_time(one: ProtectedInput) -> float:
    """What it adds to the time of a call, as a share of the float model's."""
    return one.cost / FLOAT_COST * (1 - 1 / FLOAT_COST) if one.bits == FLOAT else 0.0


def _protectable(quantizers: Mapping[str, ActivationQuantizer], recipe: Recipe) -> dict[str, int]:
    """Bits that inputs of layers would have if they were protected, by quantizer."""
    found = {}
    for name, quantizer in quantizers.items():
        path, bits = name.removesuffix(INPUT), quantizer.grid.bits
        own = any("activations" in recipe.overrides[p] for p in matching(path, recipe.overrides))
        plain = name.endswith(INPUT) and type(quantizer) is ActivationQuantizer
        if plain and not own and bits == recipe.activations:
            found[name] = WIDE if bits < WIDE else FLOAT
    return found


def _least(name: str, judged: Judgement, parts: Mapping[str, Concatenation]) -> float:
    """The error of an input's best scale, or of its parts' best scales where that is less."""
    whole = float(judged.mean(name).min())
    if name not in parts:
        return whole
    best = {p: int(judged.mean(p).argmin()) for p in parts[name].names(name)}
    return min(whole, judged.together(best))
