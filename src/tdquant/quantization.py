"""``quantize``: swaps a float model's layers for quantized ones. The only reader of a Recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from tdquant.clock import Clock, clock_of, is_quantized
from tdquant.errors import ConversionError, RecipeError
from tdquant.families import family_of
from tdquant.families.roles import Roles, named_roles, quantizable_layers, roles_of
from tdquant.layers import QUANTIZED, QuantLayer, replace_module
from tdquant.layers.attention import OPERANDS, QuantAttention, attention_blocks
from tdquant.layers.base import INPUT, keep_layers_called
from tdquant.layers.structure import least_bits, names_of
from tdquant.models.compvis.published_quantizers import equip
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, CodedWeight, NoiseWeight, WeightQuantizer
from tdquant.quantizers.starting import start_steps
from tdquant.recipe import FLOAT, LayerRecipe, Recipe
from tdquant.scales import DynamicScale, NoiseScale, PendingScale, Scale
from tdquant.state import recipe_of, state_of
from tdquant.support.adapters import refuse_peft
from tdquant.support.announce import announce
from tdquant.support.hooks import check_onloaded
from tdquant.support.patterns import matching, unmatched_patterns
from tdquant.support.restoring import changes_model
from tdquant.support.wrappers import check_denoiser

M = TypeVar("M", bound=nn.Module)


def quantize(model: M, recipe: Recipe, *, timestep: str | None = None) -> M:
    """Quantizes a denoiser in place: weights at once, activations when ``calibrate`` has seen
    some.

    Arguments:
        model: Any module called ``model(x, t, ...)``.
        recipe: Bits, scales and exceptions.
        timestep: Name of the timestep argument of ``model.forward``, if it has an unusual one.

    Returns:
        The model itself. Its layer table is ``tdq.summary(model)``.

    Raises:
        ConversionError: No timestep argument, nothing to quantize, weights that are not finite or
            not there yet, or a pipeline, class or wrapper in the place of the model. The model is
            then left as it was.
        RecipeError: Not a recipe, or patterns that match no layer; all of them are listed.
    """
    check_denoiser(model, "tdq.quantize")
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"a recipe of type {type(recipe).__name__}",
            where="tdq.quantize",
            fix="tdq.Recipe(weights=8, activations=8); Recipe.from_dict of what to_dict gave",
        )
    check_onloaded(model, "tdq.quantize")
    convert_layers(model, recipe, timestep, _search_step)
    return announce(model)


PutWeight = Callable[[QuantLayer, Grid, Recipe, LayerRecipe, str], None]
"""Gives a layer the quantizer of its weight: the layer, the grid, the recipe, what it says of the
layer, and its path."""


@changes_model
def convert_layers(
    model: nn.Module, recipe: Recipe, timestep: str | None, put_weight: PutWeight
) -> None:
    """What ``quantize`` does, with the quantizers of weights as ``put_weight`` makes them."""
    for path, module in model.named_modules():
        if is_quantized(module) or isinstance(module, (QuantLayer, ActivationQuantizer)):
            raise ConversionError(
                "the model is quantized already",
                where=path or type(model).__name__,
                fix="start from the float model",
            )
    refuse_peft(
        model, "its layers are those of the adapter and the float ones below", "tdq.quantize"
    )
    family = family_of(model)
    layers, roles = quantizable_layers(model, family), named_roles(model)
    if not layers:
        raise ConversionError(
            "there is nothing to quantize",
            where=type(model).__name__,
            why=f"it has no layer of type {', '.join(sorted(t.__name__ for t in QUANTIZED))}",
        )
    chosen = _select(model, layers, recipe)
    clock = Clock(model, timestep or family.timestep)
    swaps: dict[str, nn.Module] = {}
    mistakes: list[ConversionError] = []
    for path in chosen:
        plan = _plan(model, path, recipe, roles)
        if min(plan.weights, plan.activations) < FLOAT:
            try:
                swaps[path] = _quant_layer(
                    model, layers[path], path, plan, recipe, clock, put_weight
                )
            except ConversionError as error:
                mistakes.append(error)
    _raise_collected(mistakes)
    blocks = _attention(model, recipe, clock)
    for path, layer in swaps.items():
        replace_module(model, layers[path], layer)
    for block, processor in blocks:
        block.set_processor(processor)  # type: ignore[operator]
    keep_layers_called(model)
    state_of(model).recipe = recipe


def _plan(model: nn.Module, path: str, recipe: Recipe, roles: Roles) -> LayerRecipe:
    """What a layer gets: overrides win over its role, and what a structure needs over both."""
    edge, time_path = path in roles.first | roles.last, path in roles.time_path
    plan = recipe.for_layer(matching(names_of(model, path), recipe.overrides), edge, time_path)
    weights, activations = least_bits(model, path)
    return replace(
        plan,
        weights=max(plan.weights, weights),
        activations=max(plan.activations, activations),
    )


def change_roles(model: nn.Module, roles: Roles) -> None:
    """Gives the layers of a quantized model, not yet calibrated, what its recipe has for these
    roles, in place. Weights that are held as codes keep their bits.
    """
    recipe, before = recipe_of(model), roles_of(model)
    state_of(model).roles = roles
    if not isinstance(recipe, Recipe) or recipe.grid == "published":
        return  # published quantizers are those of named layers
    layers, clock = quantizable_layers(model), clock_of(model)
    for path in _select(model, layers, recipe):
        old, plan = layers[path], _plan(model, path, recipe, roles)
        if plan == _plan(model, path, recipe, before):
            continue
        if isinstance(old, QuantLayer) and isinstance(old.weight_quantizer, CodedWeight):
            old.input_quantizer = _input_quantizer(path, plan, recipe, clock)
            continue
        check_onloaded(old, "tdq.calibrate")
        new = old.to_float() if isinstance(old, QuantLayer) else old
        if min(plan.weights, plan.activations) < FLOAT:
            new = _quant_layer(model, new, path, plan, recipe, clock, _search_step)
        replace_module(model, old, new)
    keep_layers_called(model)


def leave_float(model: nn.Module, quantizer: str) -> None:
    """Turns the layer of an activation quantizer into a float layer again, in place; one whose
    weight is held as codes gets a float input.
    """
    layer: Any = model.get_submodule(quantizer.removesuffix(INPUT))
    if isinstance(layer.weight_quantizer, CodedWeight):
        layer.input_quantizer = nn.Identity()
    else:
        replace_module(model, layer, layer.to_float())


def _search_step(
    layer: QuantLayer, grid: Grid, recipe: Recipe, plan: LayerRecipe, path: str
) -> None:
    kind = NoiseWeight if plan.scale == NoiseScale.kind else WeightQuantizer
    per_channel, group = weight_steps(recipe, plan)
    layer.weight_quantizer = kind(grid, *start_steps(layer.weight, grid, per_channel, group, path))


def weight_steps(recipe: Recipe, plan: LayerRecipe) -> tuple[bool, int]:
    """Whether a weight has a step for each channel, and the size of its groups, or 0."""
    return recipe.granularity == "channel", recipe.group_of(plan.weights, plan.scale)


def _raise_collected(mistakes: list[ConversionError]) -> None:
    """Raises what stands in the way of several layers as one error."""
    if not mistakes:
        return
    first = mistakes[0]
    if len(mistakes) == 1:
        raise first
    raise ConversionError(
        f"{len(mistakes)} layers cannot be quantized:\n  - "
        + "\n  - ".join(f"{error.where}: {error.what}" for error in mistakes),
        why=first.why,
        fix=first.fix,
    )


def activation_quantizer(
    path: str, bits: int, kind: str, clock: Clock, symmetric: bool = False, **options: object
) -> ActivationQuantizer:
    """A new activation quantizer: ready if dynamic, else pending until calibration."""
    scale: Scale = DynamicScale() if kind == "dynamic" else PendingScale(kind, path)
    return ActivationQuantizer(Grid.signed(bits), scale, clock, symmetric, kind, options)


def _quant_layer(
    model: nn.Module,
    layer: nn.Module,
    path: str,
    plan: LayerRecipe,
    recipe: Recipe,
    clock: Clock,
    put_weight: PutWeight,
) -> QuantLayer:
    if "weight" not in layer._parameters:
        raise ConversionError(
            "its weight is computed by something else",
            where=path,
            why="weight_norm, spectral_norm or another parametrization forms it at every call",
            fix="torch.nn.utils.remove_weight_norm (or its like), or exclude the layer",
        )
    new = QUANTIZED[type(layer)].from_float(layer)
    if recipe.grid == "published":
        bits, dynamic = (plan.weights, plan.activations), plan.scale == "temporal"
        return equip(model, path, new, bits, dynamic, clock).train(layer.training)
    new.input_quantizer = _input_quantizer(path, plan, recipe, clock)
    if plan.weights != FLOAT:
        grid = Grid.signed(plan.weights, narrow=True)
        put_weight(new, grid, recipe, plan, path)
    return new.train(layer.training)


def _input_quantizer(path: str, plan: LayerRecipe, recipe: Recipe, clock: Clock) -> nn.Module:
    if plan.activations == FLOAT:
        return nn.Identity()
    symmetric = recipe.grid == "symmetric"
    return activation_quantizer(
        path, plan.activations, plan.scale, clock, symmetric, **recipe.temporal
    )


def _attention(
    model: nn.Module, recipe: Recipe, clock: Clock
) -> list[tuple[nn.Module, QuantAttention]]:
    if recipe.attention == FLOAT:
        return []
    blocks = list(attention_blocks(model))
    if not blocks:
        raise ConversionError(
            "attention products cannot be quantized here",
            where=type(model).__name__,
            why="there is no diffusers Attention block with its default processor",
            fix="Recipe(attention=32)",
        )
    return [
        (
            block,
            QuantAttention(
                {
                    name: activation_quantizer(
                        f"{path}.{name}",
                        recipe.attention,
                        recipe.scale,
                        clock,
                        recipe.grid == "symmetric",
                        **recipe.temporal,
                    )
                    for name in OPERANDS
                }
            ).train(block.training),
        )
        for path, block in blocks
    ]


def _select(model: nn.Module, layers: dict[str, nn.Module], recipe: Recipe) -> list[str]:
    """The paths that the patterns leave; patterns that match nothing are mistakes."""
    patterns = [*recipe.include, *recipe.exclude, *recipe.overrides]
    names = {path: names_of(model, path) for path in layers}
    known = dict.fromkeys(name for several in names.values() for name in several)
    unknown = unmatched_patterns(patterns, known)
    if unknown:
        hints = {
            p: difflib.get_close_matches(p.strip("*."), known, n=2, cutoff=0.3) for p in unknown
        }
        lines = [f"{p!r}" + (f" (near: {', '.join(h)})" if h else "") for p, h in hints.items()]
        raise RecipeError(
            "patterns that match no layer:\n  - " + "\n  - ".join(lines),
            fix="patterns are globs over module paths, such as 'up_blocks.*.conv1'",
        )

    return [
        path
        for path, own in names.items()
        if matching(own, recipe.include) and not matching(own, recipe.exclude)
    ]
