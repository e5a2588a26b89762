r"""``search``: bits for every layer, and static or temporal for every input, under a budget.

Errors of independent roundings add at the model's output, so that the best assignment under a
budget of size, or the smallest under a budget of error, is a knapsack:

    min sum_l e_l(b_l)  subject to  sum_l n_l b_l <= b sum_l n_l

with n_l the weights of a layer, b the average bits. For inputs n_l are multiply-accumulates.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tdquant.errors import RecipeError
from tdquant.patterns import idle, matches, matching
from tdquant.recipe import FLOAT, Recipe
from tdquant.search.frontier import Frontier, find_frontier
from tdquant.search.sensitivity import KINDS, Sensitivity

Curve = list[tuple[float, float]]
OPERANDS = ("weights", "activations")


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
        from tdquant.search.plotting import draw_trade_off

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
    problem = _Problem(replace(sensitivity, recipe=base), tuple(also), margin)
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


class _Problem:
    """Which layers are free, what they may get, and what the others add."""

    def __init__(self, sensitivity: Sensitivity, also: tuple[str, ...], margin: float) -> None:
        self.sensitivity, self.base, self.margin = sensitivity, sensitivity.recipe, margin
        self.bits = sensitivity.bits
        layers = sensitivity.layers
        unknown = idle(also, layers)
        if unknown:
            raise RecipeError(
                f"patterns that match no measured layer: {', '.join(map(repr, unknown))}",
                where="also",
            )
        if self.base.activations != FLOAT and not sensitivity.activations["static"]:
            raise RecipeError(
                f"activations={self.base.activations}, which were not measured",
                where="base",
                why="activations of the measured model are in float",
                fix="tdq.sensitivity of a model with quantized activations, or activations=32",
            )
        asked = {p for p in layers if matching(p, also)}
        apart = {p for p, facts in layers.items() if facts.role} - asked
        quantized = {
            "weights": list(sensitivity.weights),
            "activations": list(sensitivity.activations["static"]),
        }
        self.free = {
            operand: [
                p for p in quantized[operand] if p not in apart and not self._given(p, operand)
            ]
            for operand in OPERANDS
        }
        self.plain = [p for p in quantized["activations"] if p not in apart]

    def _given(self, path: str, operand: str) -> bool:
        """Whether an override of the base recipe has decided."""
        return any(
            operand in changes and matches(path, pattern)
            for pattern, changes in self.base.overrides.items()
        )

    def total(self, operand: str) -> int:
        """What the sizes of the searched layers are averaged over."""
        return sum(self._unit(p, operand) for p in self.free[operand])

    def _unit(self, path: str, operand: str) -> int:
        facts = self.sensitivity.layers[path]
        return facts.weights if operand == "weights" else facts.macs

    def _error(self, path: str, operand: str, bits: int) -> float:
        kind = self.sensitivity.kind(path, bits, self.margin) if operand == "activations" else ""
        return self.sensitivity.error(path, operand, bits, kind)

    def frontier(self, operand: str) -> Frontier:
        """The trade-off of the searched layers, from sizes in bits times units to their error."""
        free = self.free[operand]
        if not free or not self.total(operand):
            raise RecipeError(
                f"there are no {operand} to search",
                where="search",
                why="none is quantized, or the base recipe sets all of them apart",
                fix="measure a model whose recipe quantizes them, or name layers with also=",
            )
        return find_frontier(
            [[self._unit(p, operand) * b for b in self.bits] for p in free],
            [[self._error(p, operand, b) for b in self.bits] for p in free],
        )

    def chosen(self, operand: str, frontier: Frontier, index: int) -> dict[str, int]:
        """Bits of every searched layer at a point of the frontier."""
        options = frontier.options(index)
        return {p: self.bits[o] for p, o in zip(self.free[operand], options, strict=True)}

    def inputs(self) -> dict[str, tuple[int, str]]:
        """Bits and kind of every quantized input under the base recipe."""
        out = {}
        for path in self.sensitivity.activations["static"]:
            bits = self.base.activations
            if path not in self.free["activations"]:
                bits = self.sensitivity.layers[path].activation_bits
            kind = self.sensitivity.kind(path, None if bits == FLOAT else bits, self.margin)
            out[path] = (bits, kind)
        return out

    def chosen_inputs(self, frontier: Frontier, index: int) -> dict[str, tuple[int, str]]:
        return {
            p: (b, self.sensitivity.kind(p, b, self.margin))
            for p, b in self.chosen("activations", frontier, index).items()
        }

    def rest(self, inputs: Mapping[str, tuple[int, str]]) -> float:
        """The error of everything but the searched weights."""
        silent = dict.fromkeys(self.free["weights"], FLOAT)
        return self.sensitivity.predict(silent, inputs)

    def uniform(self, bits: int) -> float:
        """The error of the searched weights with the same width for all."""
        return sum(self._error(p, "weights", bits) for p in self.free["weights"])

    def recipe(self, weights: Mapping[str, int], inputs: Mapping[str, tuple[int, str]]) -> Recipe:
        """The base recipe with an override for every layer that gets something else."""
        overrides: dict[str, dict[str, Any]] = {k: dict(v) for k, v in self.base.overrides.items()}
        for path in self.sensitivity.layers:
            role = self.sensitivity.layers[path].role
            changes: dict[str, Any] = {}
            if path in weights and (role or weights[path] != self.base.weights):
                changes["weights"] = weights[path]
            if path in self.plain:
                bits, kind = inputs[path]
                if path in self.free["activations"] and (role or bits != self.base.activations):
                    changes["activations"] = bits
                if self.base.scale == "auto" and not self._given(path, "scale"):
                    changes["scale"] = kind
            if changes:
                pattern = glob.escape(path)
                # Last, since later patterns win.
                overrides[pattern] = overrides.pop(pattern, {}) | changes
        return replace(self.base, overrides=overrides)


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
