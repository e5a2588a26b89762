"""Why layers are not free to have other bits, and the error of a budget that they keep from being
met.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from tdquant.errors import RecipeError
from tdquant.families.roles import roles_of
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.structure import names_of
from tdquant.quantizers import CodedWeight
from tdquant.recipe import FLOAT, Recipe
from tdquant.support.patterns import matching

SHOWN = 3
"""Layers of each reason that an error names."""

LEAST = 0.0005
"""Least share of a reason that an error names."""


class Apart:
    """Tells why the bits of a layer are not for a budget to choose.

    Arguments:
        model: A quantized model.
        recipe: Its recipe.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        self._roles = roles_of(model)

    def why(self, path: str, *operands: str) -> str:
        """The reason, in a few words; empty if the bits of all operands are free.

        Arguments:
            path: The layer.
            operands: ``"weights"``, ``"activations"``.
        """
        recipe, names = self._recipe, names_of(self._model, path)
        layer = self._model.get_submodule(path)
        if self._overridden(names, operands):
            return "overrides of the recipe"
        if self._on_time_path(names):
            return f"the time path, time_weights={recipe.time_bits}"
        if any(name in self._roles.first | self._roles.last for name in names):
            return f"the first and last layers, edges={recipe.edges}"
        wide = [name for name in operands if getattr(recipe, name) == FLOAT]
        if wide:
            return " and ".join(f"{name}={FLOAT}" for name in wide)
        if not isinstance(layer, QuantLayer):
            return "left in float"
        if isinstance(layer.weight_quantizer, CodedWeight):
            return "codes without their float weights"
        return ""

    def time_path(self) -> dict[str, QuantLayer]:
        """Layers whose weights have the bits of the time path, by path."""
        named = (
            (path, layer, names_of(self._model, path))
            for path, layer in quantized_layers(self._model)
        )
        return {
            path: layer
            for path, layer, names in named
            if self._on_time_path(names) and not self._overridden(names, ("weights",))
        }

    def _on_time_path(self, names: Iterable[str]) -> bool:
        return any(name in self._roles.time_path for name in names)

    def _overridden(self, names: Collection[str], operands: Iterable[str]) -> bool:
        patterns = matching(names, self._recipe.overrides)
        changed = [self._recipe.overrides[pattern] for pattern in patterns]
        return any(operand in changes for changes in changed for operand in operands)


def refuse(
    name: str,
    asked: float,
    least: float,
    of: str,
    parts: Mapping[str, Mapping[str, float]],
    fix: str,
) -> RecipeError:
    """The error of a budget that cannot be met.

    Arguments:
        name: The budget, ``"size"``.
        asked: Its value.
        least: The least that can be met.
        of: What both are shares of.
        parts: Reason -> layer -> its share of ``least``.
        fix: What else can be done than asking for more.
    """
    lines = []
    for why, layers in sorted(parts.items(), key=lambda part: -sum(part[1].values())):
        largest = sorted(filter(None, layers), key=lambda layer: -layers[layer])
        names = ", ".join(largest[:SHOWN]) + (", ..." if len(largest) > SHOWN else "")
        share = sum(layers.values())
        if share >= LEAST:
            lines.append(f"{share:.3f} {why}" + (f" ({names})" if names else ""))
    return RecipeError(
        f"{name}={asked:g} cannot be met",
        where="Budget",
        why=f"the least is {least:.3f} of {of}:\n    " + "\n    ".join(lines),
        fix=f"{name}={math.ceil(1000 * least) / 1000:g} or more; or {fix}",
    )
