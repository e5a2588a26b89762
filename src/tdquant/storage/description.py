"""JSON-safe descriptions of frozen models: everything but their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from tdquant.calibration.record import RemedyRecord
from tdquant.clock import clock_of
from tdquant.errors import FreezeError
from tdquant.freezing import is_frozen
from tdquant.layers import quantized_layers, structured_layers
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.layers.correction import correction_of
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import aligned_bits, stored_bits
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer
from tdquant.recipe import Recipe
from tdquant.scales import TableScale
from tdquant.state import history, recipe_of, state_of

ROWS = "dynamic by row"
"""Name in files of a dynamic scale of rows. Versions that know none refuse it, and do not take it
for one of samples.
"""

Description = Mapping[str, Any]


def describe(model: nn.Module) -> dict[str, Any]:
    """Describes a frozen model: timestep argument, recipe, and every layer.

    Raises:
        ConversionError: The model is not quantized.
        FreezeError: It is not frozen.
    """
    clock = clock_of(model)
    if not is_frozen(model):
        raise FreezeError(
            "only a frozen model can be saved",
            where=type(model).__name__,
            fix="tdq.calibrate it if that is not done, then save tdq.freeze(model)",
        )
    recipe, correction = recipe_of(model), correction_of(model)
    behind: dict[str, Any] = {}
    if isinstance(remedies := state_of(model).remedies, RemedyRecord):
        behind["remedies"] = remedies.to_dict()
    if correction is not None:
        behind["correction"] = correction.settings()
    if any(getattr(module, "fused_projections", False) for module in model.modules()):
        behind["fused"] = True
    if aliases := _aliases(model):
        behind["aliases"] = aliases
    return {
        "timestep": clock.argument,
        "coverage": list(clock.coverage) if clock.coverage else None,
        "recipe": recipe.to_dict() if isinstance(recipe, Recipe) else None,
        "structures": [
            {"path": path, "structure": layer.structure, **layer.specification()}
            for path, layer in structured_layers(model)
        ],
        "layers": {
            path: {"type": type(layer).__name__} | _operands(layer)
            for path, layer in quantized_layers(model)
        },
        "history": history(model),
        "attention": {
            path.removesuffix(".processor"): {
                name: _describe_activation(module.quantizer(name)) for name in OPERANDS
            }
            for path, module in model.named_modules()
            if isinstance(module, QuantAttention)
        },
        **behind,
    }


def _operands(layer: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    frozen = layer.weight_quantizer
    if isinstance(frozen, FrozenWeight):
        weight = layer.weight
        spec["weight"] = {
            "bits": frozen.grid.bits,
            "qmax": frozen.grid.qmax,
            "packed": stored_bits(frozen.grid.bits),
            **({"group": frozen.group} if frozen.group else {}),
            "shape": list(weight.shape),
            "steps": len(frozen.step) if frozen.step.ndim else None,
            "dtype": str(weight.dtype).removeprefix("torch."),
        }
    if isinstance(layer.input_quantizer, ActivationQuantizer):
        spec["input"] = _describe_activation(layer.input_quantizer)
    return spec


def _describe_activation(quantizer: Any) -> dict[str, Any]:
    grid, scale = quantizer.grid, quantizer.scale
    out = {
        "bits": grid.bits,
        "qmin": grid.qmin,
        "qmax": grid.qmax,
        "zero_point": grid.zero_point,
        "scale": ROWS if scale.by_row else scale.kind,
    }
    if quantizer.batch is not None:
        out["batch"] = asdict(quantizer.batch)
    if isinstance(quantizer, OffsetQuantizer):
        out["offset"] = quantizer.offset
    if isinstance(scale, TableScale):
        out |= {"knots": len(scale.knots), "first": scale.first}
    return out


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further paths of layers that occur several times -> the path that they are saved under."""
    known = {layer: path for path, layer in quantized_layers(model)}
    every = model.named_modules(remove_duplicate=False)
    return {path: known[m] for path, m in every if known.get(m, path) != path}  # type: ignore[call-overload]


def activations(description: Description) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the path and the description of every activation quantizer."""
    for path, spec in description["layers"].items():
        if "input" in spec:
            yield f"{path}.input_quantizer", spec["input"]
    for path, operands in description["attention"].items():
        for name, spec in operands.items():
            yield f"{path}.processor.{name}_quantizer", spec


def weight_grid(spec: Mapping[str, Any]) -> Grid:
    """The grid of a described weight."""
    grid = Grid.signed(spec["bits"], narrow=True)
    return Grid(grid.bits, -spec["qmax"], spec["qmax"]) if "qmax" in spec else grid


def stored_width(spec: Mapping[str, Any]) -> int:
    """Bits that a stored code of a described weight takes; version 1 rounded them up."""
    return spec.get("packed") or aligned_bits(spec["bits"])
