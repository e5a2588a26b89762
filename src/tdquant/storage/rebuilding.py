"""Rebuilds a frozen model from its description: first a skeleton of layers, then the stored
tensors by name, in any number of portions.

The skeleton holds weights as codes, so portions are independent of each other: the codes and the
step sizes of a weight may lie in different shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.record import RemedyRecord
from tdquant.clock import Clock
from tdquant.errors import StorageError
from tdquant.freezing import fitted_times
from tdquant.layers import QUANTIZED, quantized_layers, replace_module
from tdquant.layers.attention import QuantAttention
from tdquant.layers.base import keep_layers_called
from tdquant.layers.correction import BiasTable, OutputCorrection
from tdquant.layers.structure import structure_named
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import code_dtype, stored_bits, unpack
from tdquant.quantizers import ActivationQuantizer, CodedWeight, OffsetQuantizer
from tdquant.quantizers.groups import MULTIPLIER_BITS, Groups, count_groups, no_multipliers
from tdquant.quantizers.steps import row_blocks
from tdquant.recipe import Recipe
from tdquant.scales import DynamicScale, Scale, TableScale
from tdquant.state import state_of
from tdquant.storage.description import ROWS, Description, activations, stored_width, weight_grid

CODES, STEP, TABLE = ".weight.codes", ".weight.step", ".scale.table"
MULTIPLIERS = ".weight.multipliers"


def build_skeleton(
    model: nn.Module, description: Description, dtype: torch.dtype | None = None
) -> None:
    """Replaces layers of a float model by frozen ones, in place, whose tensors are not yet read.

    Arguments:
        model: A float model of the saved architecture, possibly with meta parameters.
        description: What ``describe`` gave.
        dtype: Dtype of the dequantized weights; that of the saved model if None.

    Raises:
        StorageError: The description is of another architecture.
        RecipeError: The recipe is of a newer version.
    """
    clock = Clock(model, description["timestep"])
    coverage = description.get("coverage")
    clock.coverage = (coverage[0], coverage[1]) if coverage else None
    state = state_of(model)
    state.history = list(description.get("history", ()))
    if description.get("recipe"):
        state.recipe = Recipe.from_dict(description["recipe"])
    if description.get("remedies"):
        state.remedies = RemedyRecord.from_dict(description["remedies"])
    if description.get("fused"):
        model.fuse_qkv_projections()  # type: ignore[operator]
    for entry in description.get("structures", ()):
        _restructure(model, dict(entry))
    for path, spec in description["layers"].items():
        _put_layer(model, path, spec, clock, dtype)
    keep_layers_called(model)
    if correction := description.get("correction") or description.get("gain"):
        OutputCorrection.blank(clock, **correction).attach(model)
    for path, operands in description["attention"].items():
        block: Any = _at(model, path)
        block.set_processor(
            QuantAttention({name: _activation(spec, clock) for name, spec in operands.items()})
        )
    clock.seen = fitted_times(model)


def _at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise StorageError(
            "the model has no such module",
            where=path,
            why="another architecture was saved",
            fix="a float model of the architecture that was saved",
        ) from error


def _restructure(model: nn.Module, entry: dict[str, Any]) -> None:
    path, name = entry.pop("path"), entry.pop("structure")
    old = _at(model, path)
    replace_module(model, old, structure_named(name, path).from_float(old, **entry))


def _put_layer(
    model: nn.Module,
    path: str,
    spec: Mapping[str, Any],
    clock: Clock,
    dtype: torch.dtype | None,
) -> None:
    old = _at(model, path)
    if type(old) not in QUANTIZED or QUANTIZED[type(old)].__name__ != spec["type"]:
        raise StorageError(
            f"a {type(old).__name__} where a {spec['type']} was saved",
            where=path,
            fix="a float model of the architecture that was saved, not quantized",
        )
    layer = QUANTIZED[type(old)].from_float(old)
    if "weight" in spec:
        saved, shape = spec["weight"], tuple(layer.weight.shape)
        if shape != tuple(saved["shape"]):
            raise StorageError(
                f"codes of {saved['bits']} bits for a weight {tuple(saved['shape'])} do not fit "
                f"the model's {shape}",
                where=path,
                fix="a float model of the architecture that was saved",
            )
        if saved.get("packed") not in (None, stored_bits(saved["bits"])):
            raise StorageError(
                f"codes of {saved['bits']} bits in {saved['packed']}",
                where=path,
                why="the description was changed",
            )
        grid = weight_grid(saved)
        steps = saved.get("steps", shape[0])
        step = (
            torch.ones((), dtype=torch.float32)
            if steps is None
            else torch.ones(steps, dtype=torch.float32)
        )
        codes = torch.empty(shape, dtype=code_dtype(grid.bits), device="meta")
        numbers = dtype or getattr(torch, saved["dtype"])
        groups = no_multipliers(shape, saved.get("group") or 0)
        layer.hold_codes(codes, CodedWeight(grid, step, numbers, groups))
    if "input" in spec:
        layer.input_quantizer = _activation(spec["input"], clock)
    replace_module(model, old, layer)


def _activation(spec: Mapping[str, Any], clock: Clock) -> ActivationQuantizer:
    grid = Grid(spec["bits"], spec["qmin"], spec["qmax"], spec["zero_point"])
    scale: Scale
    if spec["scale"] in (DynamicScale.kind, ROWS):
        scale = DynamicScale(by_row=spec["scale"] == ROWS)
    else:
        scale = _table(spec["knots"], spec.get("first") or 0)
    if "offset" in spec:
        quantizer: ActivationQuantizer = OffsetQuantizer(
            grid, scale, clock, spec["offset"], spec["scale"]
        )
    else:
        quantizer = ActivationQuantizer(grid, scale, clock, wanted=scale.kind)
    quantizer.batch = BatchAxis(**spec["batch"]) if spec.get("batch") else None
    return quantizer


def _table(count: int, first: int = 0) -> TableScale:
    return TableScale(_knots(count, first), torch.ones(count, dtype=torch.float32))


def _knots(count: int, first: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32) + first


def state_names(names: Iterable[str], description: Description) -> list[str]:
    """The names in the skeleton's state dict for the tensors with the stored ``names``."""
    renamed = _renamed(description)
    out = [new for name in names for new in renamed.get(name, (name,))]
    return out + list(_further(out, description))


def _renamed(description: Description) -> dict[str, tuple[str, ...]]:
    """Stored names of weights and of tables with unstored knots -> names in the state dict."""
    out: dict[str, tuple[str, ...]] = {}
    if description.get("gain"):  # of 0.1
        for name in ("table", "knots"):
            out[f"tdq_gain.scale.{name}"] = (f"tdq_correction.scale.{name}",)
    for path, spec in description["layers"].items():
        if "weight" in spec:
            out[path + CODES] = (f"{path}.codes",)
            out[path + STEP] = (f"{path}.weight_quantizer.step",)
            if spec["weight"].get("group"):
                out[path + MULTIPLIERS] = (f"{path}.weight_quantizer.multipliers",)
    for path, spec in activations(description):
        if spec.get("first") is not None:
            out[path + TABLE] = (path + TABLE, f"{path}.scale.knots")
    return out


def unpack_tensors(
    stored: Iterable[tuple[str, Tensor]], description: Description
) -> dict[str, Tensor]:
    """Stored tensors, all or a portion, as entries of the skeleton's state dict.

    Arguments:
        stored: Names and tensors. Packed codes are released as they are unpacked.
        description: What ``describe`` gave.

    Raises:
        StorageError: Codes do not fit the shape of their weight.
    """
    renamed = _renamed(description)
    tables = {path + TABLE: spec for path, spec in activations(description)}
    out = {}
    for name, tensor in stored:
        first, *knots = renamed.get(name, (name,))
        if first != name and name.endswith(CODES):
            spec = description["layers"][name.removesuffix(CODES)]["weight"]
            grid = weight_grid(spec)
            kind, width = code_dtype(grid.bits), stored_width(spec)
            tensor = unpack(tensor, tuple(spec["shape"]), grid.qmin, grid.bits, kind, width)
        elif first != name and name.endswith(MULTIPLIERS):
            spec = description["layers"][name.removesuffix(MULTIPLIERS)]["weight"]
            shape = spec["shape"][0], count_groups(spec["shape"], spec["group"])
            tensor = unpack(tensor, shape, 1, MULTIPLIER_BITS[spec["bits"]], torch.uint8)
        out[first] = tensor
        for other in knots:
            out[other] = _knots(tables[name]["knots"], tables[name]["first"])
    return out | {also: out[name] for also, name in _further(out, description).items()}


def _further(names: Iterable[str], description: Description) -> dict[str, str]:
    """Further names of a state dict's entries ``names``: those of layers in several places."""
    aliases = description.get("aliases", {})
    return {
        alias + name.removeprefix(path): name
        for name in (names if aliases else ())
        for alias, path in aliases.items()
        if name.startswith(f"{path}.")
    }


def finalize_weights(model: nn.Module, compact: bool) -> nn.Module:
    """Makes a frozen model ready to run after all its tensors were loaded. Once: codes of groups
    are multiplied here, since multipliers may have come after them.

    Arguments:
        model: The skeleton with its tensors.
        compact: Keep weights as codes; otherwise they are dequantized once.

    Returns:
        The model, in evaluation mode.
    """
    for module in model.modules():
        if isinstance(module, TableScale | BiasTable):
            module.index_knots()
    for _, layer in quantized_layers(model):
        if isinstance(layer.weight_quantizer, CodedWeight):
            _multiply(layer.codes.data, layer.weight_quantizer.groups)
    if not compact:
        for _, layer in quantized_layers(model):
            layer.hold_numbers()
    # Tensors mapped from a file lie at odd addresses, where BLAS may round differently.
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
    return model.eval().requires_grad_(False)


def _multiply(codes: Tensor, groups: Groups | None) -> None:
    """Multiplies codes by those of their groups, in place and by blocks of rows."""
    if groups is None:
        return
    rows = codes.flatten(1)
    for block in row_blocks(rows):
        rows[block].mul_(groups.of(block).spread(rows[block]))
