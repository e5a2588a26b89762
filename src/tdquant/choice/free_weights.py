"""The weights whose bits a budget of size is free to choose, and the bytes that they may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from tdquant.choice.apart import Apart, refuse
from tdquant.choice.size import float_bytes, saved_bytes, saved_tensors, weight_bytes
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.base import INPUT
from tdquant.layers.structure import least_bits, names_of
from tdquant.model_summary import count_weights
from tdquant.quantizers import WeightQuantizer
from tdquant.recipe import Recipe
from tdquant.refine.search.measure import group_at

WIDTHS = (3, 4, 5, 6, 8)
"""Bits that a weight may get."""


@dataclass(frozen=True)
class FreeWeight:
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
        self.free = free_weights(model, recipe)
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


def free_weights(model: nn.Module, recipe: Recipe) -> dict[str, FreeWeight]:
    """The layers of the float model whose bits are free."""
    apart, found = Apart(model, recipe), dict[str, FreeWeight]()
    for path, layer in quantized_layers(model):
        if isinstance(layer.weight_quantizer, WeightQuantizer) and not apart.why(path, "weights"):
            one = found.setdefault(names_of(model, path)[0], FreeWeight({}, {}))
            one.layers[path] = layer
            one.least[path] = least_bits(model, path)[0]
    return found
