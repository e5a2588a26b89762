"""Quantizing a model that does not fit in memory in float: its weights come one at a time, and
each is turned into its codes before the next is read.

    quantize_empty(model, recipe)          on the meta device
    code_weight(layer, weight, path)       for every layer of ``awaiting(model)``, in any order
    complete(model)

The result is what ``quantize`` and ``freeze`` make of the weights, to the bit; activation scales
wait for ``calibrate`` as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.errors import RecipeError, StorageError
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.numerics.fake_quantize import codes
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantization import convert_layers
from tdquant.quantizers import CodedWeight
from tdquant.quantizers.weight import mse_step, row_blocks
from tdquant.recipe import LayerRecipe, Recipe
from tdquant.support.announce import announce


def quantize_empty(model: nn.Module, recipe: Recipe, *, timestep: str | None = None) -> nn.Module:
    """Quantizes a model whose weights are still to be read, in place.

    Arguments:
        model: A float model with parameters on the meta device.
        recipe: Bits, scales and exceptions.
        timestep: Name of the timestep argument of ``model.forward``, if it has an unusual one.

    Returns:
        The model. Every quantized weight is a place for codes, on the meta device.

    Raises:
        ConversionError: No timestep argument, or nothing to quantize.
        RecipeError: Patterns that match no layer, or the published quantizers, which are for
            training.
    """
    if recipe.grid == "published":
        raise RecipeError(
            "grid='published' with weights that are codes from the start",
            why="its quantizers start from float weights, and learn",
            fix="grid='auto', or the float model in memory: tdq.quantize",
        )
    convert_layers(model, recipe, timestep, _leave_room)
    return model


def _leave_room(
    layer: QuantLayer, grid: Grid, per_channel: bool, plan: LayerRecipe, path: str
) -> None:
    step = torch.ones(len(layer.weight) if per_channel else ())
    layer.weight_quantizer = CodedWeight(grid, step, layer.weight.dtype)
    room = torch.empty(layer.weight.shape, dtype=code_dtype(grid.bits), device="meta")
    layer.weight = nn.Parameter(room, requires_grad=False)


def awaiting(model: nn.Module) -> dict[str, QuantLayer]:
    """The layers whose weights are still to come, by the names of these weights."""
    return {
        f"{path}.weight": layer
        for path, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, CodedWeight) and "weight" in layer._parameters
    }


@torch.no_grad()
def code_weight(layer: QuantLayer, weight: Tensor, path: str) -> None:
    """Gives a layer the codes of its weight, and their steps.

    Arguments:
        layer: One of ``awaiting``.
        weight: The float weight, on the device where the codes are to be. It is cast to the type
            that the model was built in, as if it had been loaded.
        path: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    place = layer.weight_quantizer
    assert isinstance(place, CodedWeight)
    grid, per_channel = place.grid, place.step.ndim > 0
    weight = weight.to(place.dtype)
    step = mse_step(weight, grid, per_channel, path)
    rows = weight.flatten(1)
    found = torch.empty_like(rows, dtype=layer.weight.dtype)
    for block in row_blocks(rows):
        scale = step[block, None] if per_channel else step
        found[block] = codes(rows[block], scale, grid.low, grid.high)
    layer.hold_codes(found.reshape(weight.shape), CodedWeight(grid, step, place.dtype))


def complete(model: nn.Module) -> nn.Module:
    """The model, once it has all its weights.

    Raises:
        StorageError: Some did not come.
    """
    if lacking := list(awaiting(model)):
        raise StorageError(
            f"{len(lacking)} weights are not in the checkpoint",
            where=", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else ""),
            fix="a checkpoint of the whole model",
        )
    return announce(model)
