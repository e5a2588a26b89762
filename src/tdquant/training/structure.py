"""The structure of a quantized model in training, as JSON: its recipe and every scale's kind.

A checkpoint has tensors for scales; before they can be loaded, the scales must be there. This
brings a model that was quantized, but not calibrated, into the form that a run had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tdquant.clock import is_quantized
from tdquant.errors import StorageError
from tdquant.families.roles import Roles
from tdquant.flow.settle import apply_roles
from tdquant.layers import QuantLayer, replace_module, structured_layers
from tdquant.layers.structure import structure_named
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
        "structures": [
            {"path": path, "structure": layer.structure, **layer.specification()}
            for path, layer in structured_layers(model)
        ],
    }


def restore(model: nn.Module, structure: dict[str, Any] | None, where: str = "") -> None:
    """Gives layers the roles of the description, rewrites those that it rewrites, and replaces
    pending scales by its kinds; tensors are loaded afterwards.

    Raises:
        StorageError: The model has other quantizers than the description, or a structure is not
            known.
    """
    if structure and structure.get("roles") and state_of(model).roles is None:
        apply_roles(model, Roles.from_dict(structure["roles"]))
    for entry in _structures(structure):
        layer = dict(model.named_modules()).get(entry.pop("path"))
        if isinstance(layer, QuantLayer):
            rewrite = structure_named(entry.pop("structure"), where)
            replace_module(model, layer, rewrite.blank(layer, **entry))
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
    """Tensors of a checkpoint, and beside them a weight and bias of the layers that were
    rewritten, of the shapes that the model has before it is rewritten again.
    """
    out = dict(tensors)
    for entry in reversed(_structures(structure)):  # inner ones first
        path = entry.pop("path")
        whole = structure_named(entry.pop("structure"), path).whole(out, path, **entry)
        out |= {f"{path}.{name}": tensor for name, tensor in whole.items()}
    return out


def _structures(structure: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Structures of a description, outer ones first; in 0.1 there were split layers alone."""
    known = structure or {}
    splits = known.get("splits", {}).items()
    old = [{"path": path, "structure": "split", "sizes": sizes} for path, sizes in splits]
    return [*old, *map(dict, known.get("structures", []))]


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
