"""The search problem: the free layers, their possible widths, and the error of all others."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tdquant.errors import RecipeError
from tdquant.quantizers.groups import MULTIPLIER_BITS, count_groups
from tdquant.recipe import FLOAT, Recipe
from tdquant.refine.search.frontier import Frontier, find_frontier
from tdquant.refine.search.sensitivity import Sensitivity
from tdquant.support.patterns import matches, matching, unmatched_patterns

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class TradeOff:
    """Average bits against error, for the searched layers of one operand.

    Attributes:
        paths: The layers.
        bits: Their possible widths.
        units: Sum of what their widths are averaged over.
        frontier: Sizes in bits times units, and errors.
    """

    paths: list[str]
    bits: tuple[int, ...]
    units: int
    frontier: Frontier

    def average(self, index: int) -> float:
        """Average bits at a point of the frontier."""
        return float(self.frontier.sizes[index]) / self.units

    def widths(self, index: int) -> dict[str, int]:
        """Bits of every layer at a point of the frontier."""
        options = self.frontier.options(index)
        return {path: self.bits[o] for path, o in zip(self.paths, options, strict=True)}

    def curve(self, rest: float) -> Curve:
        """Average bits and error of all points, with the error of everything else."""
        pairs = zip(self.frontier.sizes.tolist(), self.frontier.errors.tolist(), strict=True)
        return [(size / self.units, error + rest) for size, error in pairs]

    def within_bits(self, target: float, name: str) -> int:
        """Index of the least error within an average width, which the argument ``name`` gave."""
        size, index = target * self.units * (1 + 1e-9), None
        if math.isfinite(target):
            index = self.frontier.within_size(size)
        if index is None:
            raise RecipeError(
                f"{name}={target:g} is out of reach",
                where="search",
                why=f"the measured widths give {self.average(0):.2f} to {self.average(-1):.2f} "
                "bits on average",
                fix="a target in that range, or tdq.sensitivity(bits=) with smaller widths",
            )
        return index

    def within_error(self, max_error: float, rest: float) -> int:
        """Index of the smallest size within an error, ``rest`` of which comes from elsewhere."""
        errors, index = self.frontier.errors, None
        if math.isfinite(max_error):
            index = self.frontier.within_error(max_error - rest)
        if index is None:
            raise RecipeError(
                f"max_error={max_error:g} is out of reach",
                where="search",
                why=f"errors from {errors[-1] + rest:.3g} to {errors[0] + rest:.3g} are "
                f"attainable, of which {rest:.3g} come from what is not searched",
                fix="a larger error, more bits in tdq.sensitivity(bits=), or more for activations",
            )
        return index


class Problem:
    """What is searched: the layers of a measured model that its recipe does not set apart.

    Arguments:
        sensitivity: The measured errors, with the base recipe.
        also: Patterns of set-apart layers to search too.
        margin: Share by which a temporal scale has to lower the error of an ``"auto"`` input.
    """

    def __init__(self, sensitivity: Sensitivity, also: tuple[str, ...], margin: float) -> None:
        self.sensitivity, self.base, self.margin = sensitivity, sensitivity.recipe, margin
        layers = sensitivity.layers
        unknown = unmatched_patterns(also, layers)
        if unknown:
            raise RecipeError(
                f"patterns that match no measured layer: {', '.join(map(repr, unknown))}",
                where="also",
            )
        quantized = {
            "weights": sensitivity.weights,
            "activations": sensitivity.activations["static"],
        }
        if self.base.activations != FLOAT and not quantized["activations"]:
            raise RecipeError(
                f"activations={self.base.activations}, which were not measured",
                where="base",
                why="activations of the measured model are in float",
                fix="tdq.sensitivity of a model with quantized activations, or activations=32",
            )
        apart = {p for p, facts in layers.items() if facts.role and not matching(p, also)}
        plain = {
            operand: [p for p in paths if p not in apart] for operand, paths in quantized.items()
        }
        self.plain = plain["activations"]
        self.free = {
            operand: [p for p in paths if self._override(p, operand, None) is None]
            for operand, paths in plain.items()
        }

    def _override(self, path: str, key: str, default: Any) -> Any:
        """The value that the overrides of the base recipe give a layer; the last of them wins."""
        for pattern, changes in self.base.overrides.items():
            if key in changes and matches(path, pattern):
                default = changes[key]
        return default

    def _error(self, path: str, operand: str, bits: int) -> float:
        kind = self.sensitivity.kind(path, bits, self.margin) if operand == "activations" else ""
        return self.sensitivity.error(path, operand, bits, kind)

    def _size(self, path: str, operand: str, bits: int) -> int:
        """Bits of a layer's weights, with those of multipliers of groups, or of its inputs, by
        multiply-accumulates.
        """
        facts = self.sensitivity.layers[path]
        if operand != "weights":
            return facts.macs * bits
        size = self.base.group_of(bits, self._override(path, "scale", self.base.scale))
        groups = count_groups((1, facts.columns), size)
        multipliers = facts.weights // facts.columns * groups if groups else 0
        return facts.weights * bits + multipliers * MULTIPLIER_BITS.get(bits, 0)

    def trade_off(self, operand: str) -> TradeOff:
        """The trade-off of the searched layers.

        Raises:
            RecipeError: There are none.
        """
        paths, bits, layers = self.free[operand], self.sensitivity.bits, self.sensitivity.layers
        units = [layers[p].weights if operand == "weights" else layers[p].macs for p in paths]
        if not sum(units):
            raise RecipeError(
                f"there are no {operand} to search",
                where="search",
                why="none is quantized, or the base recipe sets all of them apart",
                fix="measure a model whose recipe quantizes them, or name layers with also=",
            )
        frontier = find_frontier(
            [[self._size(p, operand, b) for b in bits] for p in paths],
            [[self._error(p, operand, b) for b in bits] for p in paths],
        )
        return TradeOff(paths, bits, sum(units), frontier)

    def inputs(self) -> dict[str, tuple[int, str]]:
        """Bits and kind of scale of every quantized input under the base recipe."""
        found = {}
        for path in self.sensitivity.activations["static"]:
            bits = self.base.activations
            if path not in self.free["activations"]:
                own = self.sensitivity.layers[path].activation_bits
                bits = self._override(path, "activations", own)
            scale = self._override(path, "scale", None)
            measured = None if bits == FLOAT else bits
            found[path] = (bits, self.sensitivity.kind(path, measured, self.margin, scale))
        return found

    def with_kinds(self, widths: Mapping[str, int]) -> dict[str, tuple[int, str]]:
        """Widths of inputs, with the kinds of scale that they are to have."""
        return {p: (b, self.sensitivity.kind(p, b, self.margin)) for p, b in widths.items()}

    def rest(self, inputs: Mapping[str, tuple[int, str]]) -> float:
        """The error of everything but the searched weights."""
        layers = self.sensitivity.layers
        weights = {
            path: FLOAT
            if path in self.free["weights"]
            else self._override(path, "weights", layers[path].weight_bits)
            for path in self.sensitivity.weights
        }
        return self.sensitivity.predict(weights, inputs)

    def uniform(self) -> Curve:
        """Average bits and error of the searched weights with the same width for all."""
        paths, layers = self.free["weights"], self.sensitivity.layers
        units = sum(layers[p].weights for p in paths)
        return [
            (
                sum(self._size(p, "weights", b) for p in paths) / units,
                sum(self._error(p, "weights", b) for p in paths),
            )
            for b in self.sensitivity.bits
        ]

    def recipe(self, weights: Mapping[str, int], inputs: Mapping[str, tuple[int, str]]) -> Recipe:
        """The base recipe with an override for every layer that differs from it."""
        overrides: dict[str, dict[str, Any]] = {k: dict(v) for k, v in self.base.overrides.items()}
        for path, facts in self.sensitivity.layers.items():
            changes: dict[str, Any] = {}
            if path in weights and (facts.role or weights[path] != self.base.weights):
                changes["weights"] = weights[path]
            if path in self.plain:
                bits, kind = inputs[path]
                searched = path in self.free["activations"]
                if searched and (facts.role or bits != self.base.activations):
                    changes["activations"] = bits
                if self.base.scale == "auto" and self._override(path, "scale", None) is None:
                    changes["scale"] = kind
            if changes:
                pattern = glob.escape(path)
                # Last, since later patterns win.
                overrides[pattern] = overrides.pop(pattern, {}) | changes
        return replace(self.base, overrides=overrides)
