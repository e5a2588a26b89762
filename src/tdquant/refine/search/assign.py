r"""``search``: bits for every layer, and static or temporal for every input, under a budget.

Errors of independent roundings add at the model's output, so that the best assignment under a
budget of size, or the smallest under a budget of error, is a knapsack:

    min sum_l e_l(b_l)  subject to  sum_l n_l b_l <= b sum_l n_l

with n_l the weights of a layer, b the average bits. For inputs n_l are multiply-accumulates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdquant.errors import RecipeError
from tdquant.recipe import Recipe
from tdquant.refine.search.frontier import Frontier
from tdquant.refine.search.problem import Problem
from tdquant.refine.search.sensitivity import KINDS, Sensitivity

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Search:
    """What the search found. ``str()`` gives a few lines.

    Attributes:
        recipe: The recipe, with an override for each layer that differs from the base.
        bits: Average bits of the searched weights, by their number.
        activation_bits: Average bits of the searched inputs, by multiply-accumulates; None if
            they were left as they are.
        error: Predicted mean squared output error, of all that the recipe quantizes.
        curve: Average bits and predicted error of every assignment of weights that no other
            betters, by increasing bits.
        activation_curve: The same of inputs, at the chosen weights; empty if they were left.
        uniform: Average bits and predicted error with the same width for all searched weights.
        weights: path -> bits of every searched weight.
        activations: path -> bits and kind of scale of every input that is not set apart.
    """

    recipe: Recipe
    bits: float
    activation_bits: float | None
    error: float
    curve: Curve
    activation_curve: Curve
    uniform: Curve
    weights: dict[str, int]
    activations: dict[str, tuple[int, str]]

    def __str__(self) -> str:
        lines = [f"weights of {self.bits:.2f} bits on average, predicted error {self.error:.3g}"]
        smaller = [point for point in self.uniform if point[0] <= self.bits + 1e-9]
        if smaller:
            lines.append(f"  {smaller[-1][0]:g} bits everywhere: {smaller[-1][1]:.3g}")
        counts = {b: list(self.weights.values()).count(b) for b in set(self.weights.values())}
        spread = ", ".join(f"{n} of {b} bits" for b, n in sorted(counts.items()))
        lines.append(f"  {len(self.weights)} layers: {spread}")
        if self.activation_bits is not None:
            lines.append(f"inputs of {self.activation_bits:.2f} bits on average")
        kinds = [kind for _, kind in self.activations.values()]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
        lines.append(f"  scales: {counted}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the trade-off of weight bits and predicted error, with uniform widths beside it.

        Arguments:
            path: The picture, such as ``"search.png"``.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from tdquant.refine.search.plotting import draw_trade_off

        draw_trade_off(Path(path), self.curve, self.uniform, (self.bits, self.error))


def search(
    sensitivity: Sensitivity,
    *,
    target_bits: float | None = None,
    max_error: float | None = None,
    target_activation_bits: float | None = None,
    base: Recipe | None = None,
    also: Sequence[str] = (),
    margin: float = 0.1,
) -> Search:
    """The recipe with the least predicted output error within a size, or the smallest one within
    an error.

    Layers that the base recipe sets apart, edges and the time path, and those whose bits its
    overrides give stay as they are, and count in the error but not in the averages.

    Arguments:
        sensitivity: What ``tdq.sensitivity`` measured.
        target_bits: Most bits of a weight on average over the searched weights.
        max_error: Largest mean squared output error, predicted; instead of ``target_bits``.
        target_activation_bits: Most bits of an input on average over multiply-accumulates; None
            leaves the base recipe's.
        base: What the recipe is made from; the one of the measured model if None.
        also: Patterns of set-apart layers to search too.
        margin: Where the base scale is ``"auto"``, an input's is temporal if that lowers its error
            by more than this share.

    Raises:
        RecipeError: Neither or both budgets, a budget out of reach (the attainable range is
            said), patterns that match nothing, or nothing to search.
        CalibrationError: The base recipe has activations of a width that was not measured.
    """
    base = sensitivity.recipe if base is None else base
    if (target_bits is None) == (max_error is None):
        raise RecipeError(
            f"target_bits={target_bits}, max_error={max_error}",
            where="search",
            why="one budget is kept and the other quantity is minimised",
            fix="give one of them",
        )
    problem = Problem(replace(sensitivity, recipe=base), tuple(also), margin)
    inputs = problem.inputs()
    at_inputs: tuple[Frontier, int] | None = None
    if target_activation_bits is not None:
        found = problem.frontier("activations")
        units = problem.total("activations")
        at = _within(found, target_activation_bits, units, "target_activation_bits")
        at_inputs = found, at
        inputs |= problem.chosen_inputs(found, at)

    frontier, total = problem.frontier("weights"), problem.total("weights")
    rest = problem.rest(inputs)
    if target_bits is not None:
        index = _within(frontier, target_bits, total, "target_bits")
    else:
        assert max_error is not None
        index = _enough(frontier, max_error, rest)
    widths = problem.chosen("weights", frontier, index)
    error = float(frontier.errors[index]) + rest
    activation_bits, activation_curve = None, []
    if at_inputs is not None:
        found, at = at_inputs
        activation_bits = float(found.sizes[at]) / units
        activation_curve = _curve(found, units, error - float(found.errors[at]))
    return Search(
        problem.recipe(widths, inputs),
        float(frontier.sizes[index]) / total,
        activation_bits,
        error,
        _curve(frontier, total, rest),
        activation_curve,
        [(float(b), rest + problem.uniform(b)) for b in problem.bits],
        widths,
        {p: inputs[p] for p in problem.plain},
    )


def _within(frontier: Frontier, target: float, units: int, name: str) -> int:
    index = frontier.within_size(target * units * (1 + 1e-9)) if math.isfinite(target) else None
    if index is None:
        low, high = frontier.sizes[0] / units, frontier.sizes[-1] / units
        raise RecipeError(
            f"{name}={target:g} is out of reach",
            where="search",
            why=f"the measured widths give {low:.2f} to {high:.2f} bits on average",
            fix="a target in that range, or tdq.sensitivity(bits=) with smaller widths",
        )
    return index


def _enough(frontier: Frontier, max_error: float, rest: float) -> int:
    index = frontier.within_error(max_error - rest) if math.isfinite(max_error) else None
    if index is None:
        least, most = frontier.errors[-1] + rest, frontier.errors[0] + rest
        raise RecipeError(
            f"max_error={max_error:g} is out of reach",
            where="search",
            why=f"errors from {least:.3g} to {most:.3g} are attainable, of which {rest:.3g} come "
            "from what is not searched",
            fix="a larger error, more bits in tdq.sensitivity(bits=), or more for activations",
        )
    return index


def _curve(frontier: Frontier, units: int, rest: float) -> Curve:
    pairs = zip(frontier.sizes.tolist(), frontier.errors.tolist(), strict=True)
    return [(size / units, error + rest) for size, error in pairs]
