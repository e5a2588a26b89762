"""Quantizing a model that does not fit in memory in float: its weights come one at a time, and
each is turned into its codes before the next is read.

    quantize_empty(model, recipe)          on the meta device
    code_weight(layer, weight, path)       for every layer of ``awaiting(model)``, in any order
    complete(model)

The weights are bit for bit those that ``quantize`` and ``freeze`` give; activation scales are set
by ``calibrate`` as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.errors import RecipeError, StorageError
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.numerics.fake_quantize import codes
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype
from tdquant.quantization import convert_layers, weight_steps
from tdquant.quantizers import CodedWeight
from tdquant.quantizers.groups import no_multipliers
from tdquant.quantizers.starting import start_steps
from tdquant.quantizers.steps import row_blocks
from tdquant.recipe import LayerRecipe, Recipe
from tdquant.support.announce import announce


def quantize_empty(model: nn.Module, recipe: Recipe, *, timestep: str | None = None) -> nn.Module:
    """Quantizes a model in place before its weights are read.

    Arguments:
        model: A float model with parameters on the meta device.
        recipe: Bits, scales and exceptions.
        timestep: Name of the timestep argument of ``model.forward``, if it has an unusual one.

    Returns:
        The model. Every quantized weight is a tensor of codes on the meta device.

    Raises:
        ConversionError: No timestep argument, or nothing to quantize.
        RecipeError: A pattern matches no layer, or the grid is that of the published quantizers,
            which are for training.
    """
    if recipe.grid == "published":
        raise RecipeError(
            "grid='published' with weights that are codes from the start",
            why="its quantizers start from float weights, and learn",
            fix="grid='auto', or the float model in memory: tdq.quantize",
        )
    convert_layers(model, recipe, timestep, _reserve_codes)
    return model


def _reserve_codes(
    layer: QuantLayer, grid: Grid, recipe: Recipe, plan: LayerRecipe, path: str
) -> None:
    per_channel, group = weight_steps(recipe, plan)
    step = torch.ones(len(layer.weight) if per_channel else (), dtype=torch.float32)
    groups = no_multipliers(layer.weight.shape, group)
    layer.weight_quantizer = CodedWeight(grid, step, layer.weight.dtype, groups)
    reserved = torch.empty(layer.weight.shape, dtype=code_dtype(grid.bits), device="meta")
    layer.weight = nn.Parameter(reserved, requires_grad=False)


def awaiting(model: nn.Module) -> dict[str, QuantLayer]:
    """Layers whose weights have not been read yet, by the names of the weights."""
    return {
        f"{path}.weight": layer
        for path, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, CodedWeight) and "weight" in layer._parameters
    }


@torch.no_grad()
def code_weight(layer: QuantLayer, weight: Tensor, path: str) -> None:
    """Puts the codes of a weight and their step sizes into its layer.

    Arguments:
        layer: One of ``awaiting``.
        weight: The float weight, on the device for the codes. It is cast to the dtype that the
            model was built in, as loading would.
        path: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    place = layer.weight_quantizer
    assert isinstance(place, CodedWeight)
    grid, per_channel = place.grid, place.step.ndim > 0
    weight = weight.to(place.dtype)
    step, groups = start_steps(weight, grid, per_channel, place.group, path)
    coded = CodedWeight(grid, step, place.dtype, groups)
    rows, units = weight.flatten(1), coded.unit(step)
    found = torch.empty_like(rows, dtype=layer.weight.dtype)
    for block in row_blocks(rows):
        scale = units[block, None] if per_channel else units
        if groups is None:
            found[block] = codes(rows[block], scale, grid.low, grid.high)
        else:
            m = groups.of(block).spread(rows[block])
            found[block] = codes(rows[block], scale * m, grid.low, grid.high).mul_(m)
    layer.hold_codes(found.reshape(weight.shape), coded)


def complete(model: nn.Module) -> nn.Module:
    """Checks that all weights were read, and announces the model.

    Raises:
        StorageError: Weights are missing.
    """
    if missing := list(awaiting(model)):
        raise StorageError(
            f"{len(missing)} weights are not in the checkpoint",
            where=", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
            fix="a checkpoint of the whole model",
        )
    return announce(model)
