r"""Bits of every layer's weight within a size of the file.

    min \sum_l e_l(b_l)    subject to    \sum_l B_l(b_l) <= size * (float32 bytes) - (all else)

with e_l the error at the output that rounding the weight to b bits causes, by the judge
(``tdquant.refine.search``), and B_l the bytes of its codes and multipliers. All else is what the
file holds besides: layers that the recipe sets apart, steps, tables of scales, float tensors.

The errors of single calls are added up in two ways, plain and with the same share for all times.
Either, and the same bits everywhere, are compared by the error of the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.report import RemedyTrial
from tdquant.choice.apart import Apart, refuse
from tdquant.choice.size import float_bytes, saved_bytes, saved_tensors, weight_bytes
from tdquant.choice.trial import Trial
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.base import INPUT
from tdquant.layers.structure import least_bits, names_of
from tdquant.model_summary import count_weights
from tdquant.quantizers import NoiseWeight, WeightQuantizer
from tdquant.recipe import Recipe
from tdquant.refine.search import sensitivity
from tdquant.refine.search.frontier import find_frontier
from tdquant.refine.search.measure import group_at, rounding_at

WIDTHS = (3, 4, 5, 6, 8)
"""Bits that a weight may get."""

Widths = dict[str, int]


@dataclass(frozen=True)
class Free:
    """A layer of the float model whose bits are free.

    Attributes:
        layers: Path -> the quantized layers that it is now; several if it was rewritten.
        least: Path -> least bits of each, whatever is chosen.
    """

    layers: dict[str, QuantLayer]
    least: dict[str, int]

    def bytes(self, bits: int, recipe: Recipe) -> int:
        """Bytes of all of it with codes of so many bits."""
        return sum(
            weight_bytes(path, layer, width, group_at(layer.weight_quantizer, width, recipe))
            for path, layer in self.layers.items()
            for width in [max(bits, self.least[path])]
        )

    def bytes_now(self) -> int:
        """Bytes with the codes that it has."""
        return sum(
            weight_bytes(path, layer, quantizer.grid.bits, quantizer.group)
            for path, layer in self.layers.items()
            for quantizer in [layer.weight_quantizer]
        )


class Sizes:
    """What the file of a model holds, and the bits that are free in it.

    Arguments:
        model: A quantized model.
        recipe: Its recipe.
        size: Share of the float32 bytes that the file may have.
        reserve: Bytes of what is yet to come.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, size: float, reserve: int = 0) -> None:
        self._model, self._recipe, self._size = model, recipe, size
        self._float, self._reserve = float_bytes(model), reserve
        self.free = _free(model, recipe)
        self._rest = saved_bytes(model) + reserve
        self._rest -= sum(layer.bytes_now() for layer in self.free.values())

    @property
    def room(self) -> float:
        """Bytes for the free weights."""
        return self._size * self._float - self._rest

    def bytes(self, path: str, bits: int) -> int:
        """Bytes of a free weight with codes of so many bits."""
        return self.free[path].bytes(bits, self._recipe)

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether the file has no more than it may with these bits."""
        return sum(self.bytes(path, bits) for path, bits in widths.items()) <= self.room

    def check(self) -> None:
        """Checks that the size can be met.

        Raises:
            RecipeError: It cannot; what can be met, and what stands in the way, is told.
        """
        if self.fits(dict.fromkeys(self.free, WIDTHS[0])):
            return
        apart, parts = Apart(self._model, self._recipe), dict[str, dict[str, float]]()
        weights = {p for p, m in self._model.named_modules() if count_weights(m)}
        weights |= {path for path, _ in quantized_layers(self._model)}
        least = self._rest

        def add(why: str, path: str, count: float) -> None:
            own = parts.setdefault(why, {})
            own[path] = own.get(path, 0.0) + count / self._float

        for path in self.free:
            count = self.bytes(path, WIDTHS[0])
            add(f"weights of {WIDTHS[0]} bits", path, count)
            least += count
        named = 0
        inside = {p for layer in self.free.values() for p in layer.layers}
        for name, tensor in saved_tensors(self._model).items():
            path = name.rpartition(".weight")[0]
            named += tensor.nbytes
            if path in inside and name.endswith((".codes", ".multipliers")):
                continue
            if INPUT in name or name.startswith("tdq_correction"):
                add("tables of scales", "", tensor.nbytes)
            elif path in inside:
                add("steps of weights", "", tensor.nbytes)
            elif path in weights and (why := apart.why(path, "weights")):
                add(why, path, tensor.nbytes)
            else:
                add("biases, norms and what else is no weight", "", tensor.nbytes)
        add("names and shapes in the file", "", saved_bytes(self._model) - named)
        if self._reserve:
            add("tables of the output's correction, and factors", "", self._reserve)
        fix = "fewer bits for these layers (edges=, time_weights=, overrides=)"
        raise refuse("size", self._size, least / self._float, "the float32 bytes", parts, fix)


def choose_widths(
    model: nn.Module,
    observations: Observations,
    recipe: Recipe,
    sizes: Sizes,
    trial: Trial,
    *,
    seed: int = 0,
    progress: bool = True,
) -> RemedyTrial:
    """Gives the free weights their bits, in place.

    Arguments:
        model: A quantized model whose scales are calibrated.
        observations: Those of its activations.
        recipe: Its recipe.
        sizes: What its file holds, and may.
        trial: Measures the whole model.
        seed: Seed of the judge.
        progress: Draw bars.

    Returns:
        The error of the model before, with the bits of the recipe, and with the chosen ones.

    Raises:
        RecipeError: The size cannot be met.
    """
    sizes.check()
    before = after = trial.error(model, "bits of the recipe")
    chosen: Widths = {}
    if sizes.free:
        measured = sensitivity(
            model, observations, bits=WIDTHS, inputs=False, seed=seed, progress=progress
        )
        paths = list(sizes.free)
        same = [dict.fromkeys(paths, bits) for bits in WIDTHS]
        proposals = [widths for widths in same if sizes.fits(widths)][-1:]
        for errors in (measured, measured.balanced()):
            frontier = find_frontier(
                [[sizes.bytes(path, bits) for bits in WIDTHS] for path in paths],
                [[errors.error(path, "weights", bits) for bits in WIDTHS] for path in paths],
            )
            index = frontier.within_size(sizes.room)
            assert index is not None
            options = frontier.options(index)
            proposals.append({p: WIDTHS[o] for p, o in zip(paths, options, strict=True)})
        chosen, after = _best(model, recipe, sizes.free, proposals, trial)
    return RemedyTrial("bits", True, before, after, _words(sizes.free, chosen))


def _best(
    model: nn.Module,
    recipe: Recipe,
    free: Mapping[str, Free],
    proposals: Iterable[Widths],
    trial: Trial,
) -> tuple[Widths, float]:
    """The proposal with the least error of the whole model, put in place, and its error."""
    known: dict[tuple[str, int], WeightQuantizer] = {
        (path, layer.weight_quantizer.grid.bits): layer.weight_quantizer
        for one in free.values()
        for path, layer in one.layers.items()
    }

    def put(widths: Widths) -> None:
        for name, bits in widths.items():
            for path, layer in free[name].layers.items():
                place = path, max(bits, free[name].least[path])
                if place not in known:
                    known[place] = _quantizer(layer, place[1], recipe, path)
                layer.weight_quantizer = known[place]

    tried: list[tuple[float, Widths]] = []
    for widths in proposals:
        if not any(widths == other for _, other in tried):
            put(widths)
            tried.append((trial.error(model, f"bits, proposal {len(tried) + 1}"), widths))
    error, widths = min(tried, key=lambda one: one[0])
    put(widths)
    return widths, error


def _quantizer(layer: QuantLayer, bits: int, recipe: Recipe, path: str) -> WeightQuantizer:
    old = layer.weight_quantizer
    new = rounding_at(layer.weight, old, bits, recipe, path)
    if isinstance(old, NoiseWeight):
        new = NoiseWeight(new.grid, new.step, new.groups)
    return new.train(old.training)


def _free(model: nn.Module, recipe: Recipe) -> dict[str, Free]:
    """The layers of the float model whose bits are free."""
    apart, found = Apart(model, recipe), dict[str, Free]()
    for path, layer in quantized_layers(model):
        if isinstance(layer.weight_quantizer, WeightQuantizer) and not apart.why(path, "weights"):
            one = found.setdefault(names_of(model, path)[0], Free({}, {}))
            one.layers[path] = layer
            one.least[path] = least_bits(model, path)[0]
    return found


def _words(free: Mapping[str, Free], chosen: Widths) -> str:
    if not chosen:
        return "bits of no weight: none is free"
    numbers = {p: sum(x.weight.numel() for x in free[p].layers.values()) for p in chosen}
    average = sum(chosen[p] * n for p, n in numbers.items()) / sum(numbers.values())
    counts = ", ".join(f"{n} of {bits}" for bits, n in sorted(Counter(chosen.values()).items()))
    return f"bits of {len(chosen)} weights, {average:.2f} on average: {counts}"
