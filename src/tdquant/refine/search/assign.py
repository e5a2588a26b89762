r"""``search``: bits of every layer, and the kind of scale of every input, under a budget.

Errors of independent roundings add up at the model's output. So the best assignment under a budget
of size, or the smallest under a budget of error, solves a knapsack problem:

    min sum_l e_l(b_l)  subject to  sum_l n_l b_l <= b sum_l n_l

with n_l the weights of a layer and b the average bits, to which multipliers of groups add theirs;
for inputs n_l are multiply-accumulates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdquant.errors import RecipeError
from tdquant.recipe import Recipe
from tdquant.refine.search.problem import Curve, Problem
from tdquant.refine.search.sensitivity import KINDS, Sensitivity


@dataclass(frozen=True)
class Search:
    """The result of a search. ``str()`` gives a few lines.

    Attributes:
        recipe: The recipe, with an override for each layer that differs from the base.
        bits: Average bits of the searched weights.
        activation_bits: Average bits of the searched inputs, by multiply-accumulates; None if
            inputs were not searched.
        error: Predicted mean squared output error of all that the recipe quantizes.
        curve: Average bits and predicted error of the Pareto-optimal assignments of weights, by
            increasing bits.
        activation_curve: The same of inputs, at the chosen weights; empty if not searched.
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
            path: The image file, such as ``"search.png"``.

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
    """Finds the recipe with the least predicted output error within a size, or the smallest recipe
    within an error.

    Layers that the base recipe sets apart (edges, time path, attention) and those whose bits its
    overrides give keep their bits, and count in the error but not in the averages.

    Arguments:
        sensitivity: What ``tdq.sensitivity`` measured.
        target_bits: Most bits on average over the searched weights.
        max_error: Largest predicted mean squared output error, instead of ``target_bits``.
        target_activation_bits: Most bits of an input on average over multiply-accumulates; None
            keeps those of the base recipe.
        base: The recipe to start from; that of the measured model if None.
        also: Patterns of set-apart layers to search too.
        margin: With the scale ``"auto"``, an input's is temporal if that lowers its error by more
            than this share.

    Raises:
        RecipeError: Neither or both budgets, a budget out of reach (the attainable range is
            given), patterns that match nothing, or nothing to search.
        CalibrationError: The base recipe has activations of a width that was not measured.
    """
    base = sensitivity.recipe if base is None else base
    if (target_bits is None) == (max_error is None):
        raise RecipeError(
            f"target_bits={target_bits}, max_error={max_error}",
            where="search",
            why="one is a budget, and the other quantity is minimized",
            fix="give one of them",
        )
    problem = Problem(replace(sensitivity, recipe=base), tuple(also), margin)
    inputs = problem.inputs()
    of_inputs, at_inputs = None, 0
    if target_activation_bits is not None:
        of_inputs = problem.trade_off("activations")
        at_inputs = of_inputs.within_bits(target_activation_bits, "target_activation_bits")
        inputs |= problem.with_kinds(of_inputs.widths(at_inputs))
    of_weights, rest = problem.trade_off("weights"), problem.rest(inputs)
    if target_bits is not None:
        index = of_weights.within_bits(target_bits, "target_bits")
    else:
        assert max_error is not None
        index = of_weights.within_error(max_error, rest)
    widths, error = of_weights.widths(index), float(of_weights.frontier.errors[index]) + rest
    activation_bits, activation_curve = None, []
    if of_inputs is not None:
        activation_bits = of_inputs.average(at_inputs)
        own = float(of_inputs.frontier.errors[at_inputs])
        activation_curve = of_inputs.curve(error - own)
    return Search(
        problem.recipe(widths, inputs),
        of_weights.average(index),
        activation_bits,
        error,
        of_weights.curve(rest),
        activation_curve,
        [(size, rest + error) for size, error in problem.uniform()],
        widths,
        {p: inputs[p] for p in problem.plain},
    )
