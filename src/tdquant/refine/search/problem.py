"""What is searched: which layers are free, what each may get, and what all the others add."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tdquant.errors import RecipeError
from tdquant.recipe import FLOAT, Recipe
from tdquant.refine.search.frontier import Frontier, find_frontier
from tdquant.refine.search.sensitivity import Sensitivity
from tdquant.support.patterns import matches, matching, unmatched_patterns

OPERANDS = ("weights", "activations")


class Problem:
    """Which layers are free, what they may get, and what the others add."""

    def __init__(self, sensitivity: Sensitivity, also: tuple[str, ...], margin: float) -> None:
        self.sensitivity, self.base, self.margin = sensitivity, sensitivity.recipe, margin
        self.bits = sensitivity.bits
        layers = sensitivity.layers
        unknown = unmatched_patterns(also, layers)
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
        return self._set(path, operand, None) is not None

    def _set(self, path: str, key: str, otherwise: Any) -> Any:
        """What the overrides of the base recipe say of a layer, the last of them in the end."""
        for pattern, changes in self.base.overrides.items():
            if key in changes and matches(path, pattern):
                otherwise = changes[key]
        return otherwise

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
                bits = self._set(
                    path, "activations", self.sensitivity.layers[path].activation_bits
                )
            scale = self._set(path, "scale", None)
            measured = None if bits == FLOAT else bits
            out[path] = (bits, self.sensitivity.kind(path, measured, self.margin, scale))
        return out

    def chosen_inputs(self, frontier: Frontier, index: int) -> dict[str, tuple[int, str]]:
        return {
            p: (b, self.sensitivity.kind(p, b, self.margin))
            for p, b in self.chosen("activations", frontier, index).items()
        }

    def rest(self, inputs: Mapping[str, tuple[int, str]]) -> float:
        """The error of everything but the searched weights."""
        weights = {
            path: self._set(path, "weights", self.sensitivity.layers[path].weight_bits)
            for path in self.sensitivity.weights
        }
        return self.sensitivity.predict(
            weights | dict.fromkeys(self.free["weights"], FLOAT), inputs
        )

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
