"""The structure of a quantized model in training, as JSON: its recipe and every scale's kind.

A checkpoint has tensors for scales; before they can be loaded, the scales must be there. This
brings a model that was quantized, but not calibrated, into the form that a run had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import is_quantized
from tdquant.errors import StorageError
from tdquant.families.roles import Roles
from tdquant.flow.settle import apply_roles
from tdquant.layers import SplitLayer, quantized_layers, replace_module, structured_layers
from tdquant.numerics.grid import Grid
from tdquant.quantizers import activation_quantizers
from tdquant.recipe import Recipe
from tdquant.scales import SCALES, PendingScale
from tdquant.state import recipe_of, state_of


def describe(model: nn.Module) -> dict[str, Any] | None:
    """The structure of a quantized model, JSON-safe, or None for a float one."""
    if not is_quantized(model):
        return None
    recipe, roles = recipe_of(model), state_of(model).roles
    return {
        "recipe": recipe.to_dict() if isinstance(recipe, Recipe) else None,
        "roles": roles.to_dict() if isinstance(roles, Roles) else None,
        "activations": {
            path: {
                "kind": q.scale.kind,
                "grid": [q.grid.bits, q.grid.qmin, q.grid.qmax, q.grid.zero_point],
                "settings": q.scale.settings(),
            }
            for path, q in activation_quantizers(model)
        },
        "splits": {
            path: list(layer.sizes)
            for path, layer in structured_layers(model)
            if isinstance(layer, SplitLayer)
        },
    }


def restore(model: nn.Module, structure: dict[str, Any] | None, where: str = "") -> None:
    """Gives layers the roles of the description, splits those that it splits, and replaces pending
    scales by its kinds; tensors are loaded afterwards.

    Raises:
        StorageError: The model has other quantizers than the description.
    """
    if structure and structure.get("roles") and state_of(model).roles is None:
        apply_roles(model, Roles.from_dict(structure["roles"]))
    layers = dict(quantized_layers(model))
    for path, sizes in ({} if structure is None else structure.get("splits", {})).items():
        if path in layers:
            whole = layers[path]
            replace_module(model, whole, SplitLayer.from_quantized(whole, sizes))
    found = dict(activation_quantizers(model))
    known = {} if structure is None else structure["activations"]
    strange = sorted(set(found) ^ set(known))
    if strange:
        raise StorageError(
            f"{len(strange)} quantizers are on one side only",
            where=where,
            why=f"model and checkpoint differ at {', '.join(strange[:5])}",
            fix="resume with the recipe that the run was started with",
        )
    _same_recipe(model, structure, where)
    for path, spec in known.items():
        quantizer = found[path]
        quantizer.grid = Grid(*spec["grid"])
        if isinstance(quantizer.scale, PendingScale):
            quantizer.scale = SCALES[spec["kind"]].blank(**spec["settings"])


def joined(tensors: Mapping[str, Tensor], structure: dict[str, Any] | None) -> dict[str, Tensor]:
    """Tensors of a checkpoint, and beside them whole weights and biases of the layers that were
    split, as the model has them before it is split again.
    """
    out = dict(tensors)
    for path, sizes in ({} if structure is None else structure.get("splits", {})).items():
        parts = [tensors[f"{path}.parts.{i}.weight"] for i in range(len(sizes))]
        out[f"{path}.weight"] = torch.cat(parts, dim=1)
        if f"{path}.parts.0.bias" in tensors:
            out[f"{path}.bias"] = tensors[f"{path}.parts.0.bias"]
    return out


def _same_recipe(model: nn.Module, structure: dict[str, Any] | None, where: str) -> None:
    own, told = recipe_of(model), (structure or {}).get("recipe")
    if not isinstance(own, Recipe) or told is None:
        return
    before = Recipe.from_dict(told).to_dict()
    odd = [f"{k}: {before[k]}, now {v}" for k, v in own.to_dict().items() if before[k] != v]
    if odd:
        raise StorageError(
            "the checkpoint has another recipe:\n  - " + "\n  - ".join(odd),
            where=where,
            fix="resume with the recipe that the run was started with, or train into another "
            "folder",
        )
