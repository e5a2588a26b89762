r"""Bits of every layer's weight within a size of the file.

    min \sum_l e_l(b_l)    subject to    \sum_l B_l(b_l) <= size * (float32 bytes) - (all else)

with e_l the error at the output that rounding the weight to b bits causes, by the judge
(``tdquant.refine.search``), and B_l the bytes of its codes and multipliers. All else is what the
file holds besides: layers that the recipe sets apart, steps, tables of scales, float tensors.

The errors of single calls are added up in two ways, plain and with the same share for all times.
Either, and the same bits everywhere, are compared by the error of the whole model.

What comes after the bits, such as factors of channels, may take fewer bytes than were set aside
for it. What is left goes to the weights that save the most error for each byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.report import RemedyTrial
from tdquant.choice.free_weights import WIDTHS, FreeWeight, Sizes
from tdquant.choice.trial import Trial
from tdquant.layers import QuantLayer
from tdquant.quantizers import NoiseWeight, WeightQuantizer
from tdquant.recipe import Recipe
from tdquant.refine.search import Sensitivity, sensitivity
from tdquant.refine.search.frontier import find_frontier
from tdquant.refine.search.measure import rounding_at

Widths = dict[str, int]
Quantizers = dict[tuple[str, int], WeightQuantizer]


@dataclass(frozen=True)
class Choice:
    """Bits of weights.

    Attributes:
        trial: The error of the model with the bits of the recipe, and with the chosen ones.
        widths: Path of a layer of the float model -> its bits.
        errors: Those that the bits were chosen by; None if no weight was free.
    """

    trial: RemedyTrial
    widths: Widths
    errors: Sensitivity | None


def choose_widths(
    model: nn.Module,
    observations: Observations,
    recipe: Recipe,
    sizes: Sizes,
    trial: Trial,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Choice:
    """Gives the free weights their bits, in place.

    Arguments:
        model: A quantized model whose scales are calibrated.
        observations: Those of its activations.
        recipe: Its recipe.
        sizes: What its file holds, and may.
        trial: Measures the whole model.
        seed: Seed of the judge.
        progress: Draw bars.

    Raises:
        RecipeError: The size cannot be met.
    """
    sizes.check()
    before = after = trial.error(model, "bits of the recipe")
    chosen: Widths = {}
    judge: Sensitivity | None = None
    if sizes.free:
        measured = sensitivity(
            model, observations, bits=WIDTHS, inputs=False, seed=seed, progress=progress
        )
        paths = list(sizes.free)
        same = [dict.fromkeys(paths, bits) for bits in WIDTHS]
        proposals = [(widths, measured) for widths in same if sizes.fits(widths)][-1:]
        for errors in (measured, measured.balanced()):
            frontier = find_frontier(
                [[sizes.bytes(path, bits) for bits in WIDTHS] for path in paths],
                [[errors.error(path, "weights", bits) for bits in WIDTHS] for path in paths],
            )
            index = frontier.within_size(sizes.room)
            assert index is not None
            options = frontier.options(index)
            widths = {p: WIDTHS[o] for p, o in zip(paths, options, strict=True)}
            proposals.append((widths, errors))
        chosen, judge, after = _best(model, recipe, sizes.free, proposals, trial)
    found = RemedyTrial("bits", True, before, after, _words(sizes.free, chosen))
    return Choice(found, chosen, judge)


def spend_rest(
    model: nn.Module, recipe: Recipe, sizes: Sizes, choice: Choice, trial: Trial
) -> list[RemedyTrial]:
    """Gives free weights more bits where there is room left, and keeps them if the error of the
    whole model falls, in place.

    Arguments:
        model: The model, with all remedies that have bytes of their own.
        recipe: Its recipe.
        sizes: What its file holds now, and may.
        choice: What was chosen before.
        trial: Measures the whole model.
    """
    wider = _widened(sizes, choice)
    if not wider:
        return []
    quantizers: Quantizers = {}
    free = {path: sizes.free[path] for path in wider}
    now = {path: choice.widths[path] for path in wider}

    def change(apply: bool) -> None:
        _put(wider if apply else now, free, recipe, quantizers)

    what = "what is left of the size: " + _words(sizes.free, {**choice.widths, **wider})
    return [trial.confirm(model, "spare bytes", what, change, margin=0.0)]


def _widened(sizes: Sizes, choice: Choice) -> Widths:
    """The weights that get more bits, one step of bits after another by what it saves for each
    byte, as long as one fits.
    """
    errors, wider = choice.errors, Widths()
    widths = {path: bits for path, bits in choice.widths.items() if path in sizes.free}
    used = sum(sizes.bytes(path, bits) for path, bits in widths.items())

    def step(path: str) -> tuple[float, int, str, int]:
        """The error that the next bits save for each byte, those bytes, the path and the bits."""
        assert errors is not None
        now = widths[path]
        bits = next(b for b in WIDTHS if b > now)
        cost = sizes.bytes(path, bits) - sizes.bytes(path, now)
        saved = errors.error(path, "weights", now) - errors.error(path, "weights", bits)
        return saved / max(cost, 1), cost, path, bits

    while True:
        steps = [step(path) for path, bits in widths.items() if bits < WIDTHS[-1]]
        fitting = [one for one in steps if one[0] > 0 and used + one[1] <= sizes.room]
        if not fitting:
            return wider
        _, cost, path, bits = max(fitting, key=lambda one: one[0])
        widths[path] = wider[path] = bits
        used += cost


def _best(
    model: nn.Module,
    recipe: Recipe,
    free: Mapping[str, FreeWeight],
    proposals: Sequence[tuple[Widths, Sensitivity]],
    trial: Trial,
) -> tuple[Widths, Sensitivity, float]:
    """The proposal with the least error of the whole model, put in place, and its error."""
    quantizers: Quantizers = {}
    tried: list[tuple[float, Widths, Sensitivity]] = []
    for widths, errors in proposals:
        if not any(widths == other for _, other, _ in tried):
            _put(widths, free, recipe, quantizers)
            error = trial.error(model, f"bits, proposal {len(tried) + 1}")
            tried.append((error, widths, errors))
    error, widths, errors = min(tried, key=lambda one: one[0])
    _put(widths, free, recipe, quantizers)
    return widths, errors, error


def _put(
    widths: Widths, free: Mapping[str, FreeWeight], recipe: Recipe, quantizers: Quantizers
) -> None:
    """Gives weights their bits, in place.

    Arguments:
        widths: Bits by path.
        free: The layers by path.
        recipe: Those of the model.
        quantizers: Quantizers of layers at bits, which are used again; new ones are added.
    """
    for name, bits in widths.items():
        for path, layer in free[name].layers.items():
            now = layer.weight_quantizer
            quantizers.setdefault((path, now.grid.bits), now)
            place = path, max(bits, free[name].least[path])
            if place not in quantizers:
                quantizers[place] = _quantizer(layer, place[1], recipe, path)
            layer.weight_quantizer = quantizers[place]


def _quantizer(layer: QuantLayer, bits: int, recipe: Recipe, path: str) -> WeightQuantizer:
    old = layer.weight_quantizer
    new = rounding_at(layer.weight, old, bits, recipe, path)
    if isinstance(old, NoiseWeight):
        new = NoiseWeight(new.grid, new.step, new.groups)
    return new.train(old.training)


def _words(free: Mapping[str, FreeWeight], chosen: Widths) -> str:
    if not chosen:
        return "bits of no weight: none is free"
    numbers = {p: sum(x.weight.numel() for x in free[p].layers.values()) for p in chosen}
    average = sum(chosen[p] * n for p, n in numbers.items()) / sum(numbers.values())
    counts = ", ".join(f"{n} of {bits}" for bits, n in sorted(Counter(chosen.values()).items()))
    return f"bits of {len(chosen)} weights, {average:.2f} on average: {counts}"
