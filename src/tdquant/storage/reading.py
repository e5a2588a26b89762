"""``load``: builds or takes a float model, puts frozen layers into it and fills them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import StorageError
from tdquant.footprint import give_back
from tdquant.grid import Grid
from tdquant.layers import QUANTIZED, replace_module
from tdquant.layers.attention import QuantAttention
from tdquant.models import build
from tdquant.packing import unpack
from tdquant.quantizers import ActivationQuantizer, CodedWeight, FrozenWeight, OffsetQuantizer
from tdquant.recipe import Recipe
from tdquant.scales import DynamicScale, Scale, TableScale
from tdquant.storage.files import TENSORS, read_index, read_tensors


def load(
    directory: str | os.PathLike[str], model: nn.Module | None = None, compact: bool = False
) -> nn.Module:
    """Loads a frozen model.

    Arguments:
        directory: Folder that ``save`` wrote.
        model: A fresh float model of the same architecture, for one that cannot be built from its
            configuration. It is changed in place.
        compact: Hold weights as their codes, a quarter of the memory, for compiling: the frozen
            model itself gives the same outputs, but forms its weights anew at every call.

    Returns:
        The frozen model, on the CPU, its outputs equal bit for bit to those of the one that was
        saved.

    Raises:
        StorageError: Missing, truncated, foreign or newer files, or tensors and index that
            disagree.
        ModelError: The model cannot be built and none was given.
    """
    folder = Path(directory)
    index = read_index(folder)
    tensors = read_tensors(folder / TENSORS)
    if set(tensors) != set(index["tensors"]):
        odd = sorted(set(tensors) ^ set(index["tensors"]))
        raise StorageError(
            f"index and tensors disagree on {len(odd)} names, such as {odd[0]!r}",
            where=str(folder),
            why="the two files are not of one save",
            fix="save the model again",
        )
    if model is None:
        with build.without_parameters():
            model = build.from_description(index["model"], where=str(folder))
    clock = Clock(model, index["timestep"])
    coverage = index.get("coverage")
    clock.coverage = tuple(coverage) if coverage else None
    if index.get("recipe"):
        model.tdq_recipe = Recipe.from_dict(index["recipe"])  # type: ignore[assignment]
    try:
        for path, spec in index["layers"].items():
            _restore_layer(model, path, spec, tensors, clock, compact)
        for path, operands in index["attention"].items():
            prefix = f"{path}.processor"
            quantizers: dict[str, nn.Module] = {
                name: _restore_activation(spec, f"{prefix}.{name}_quantizer", tensors, clock)
                for name, spec in operands.items()
            }
            block: Any = model.get_submodule(path)
            block.set_processor(QuantAttention(quantizers))
        # Copies, so that the file does not stay in memory for the sake of a few biases.
        decoded = {f"{path}.weight" for path, spec in index["layers"].items() if "weight" in spec}
        tensors = {k: v if k in decoded else v.clone() for k, v in tensors.items()}
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    except (AttributeError, RuntimeError, KeyError) as error:
        raise StorageError(
            "the saved tensors do not fit the model",
            where=str(folder),
            why=str(error).strip().splitlines()[0],
            fix="a float model of the architecture that was saved: tdq.load(directory, model=...)",
        ) from error
    if missing or unexpected:
        odd = [f"missing {k}" for k in missing] + [f"unexpected {k}" for k in unexpected]
        raise StorageError(
            f"{len(odd)} tensors do not fit the model: {', '.join(odd[:4])}",
            where=str(folder),
            fix="a float model of the architecture that was saved",
        )
    del tensors
    give_back()
    return model.eval().requires_grad_(False)


def _restore_layer(
    model: nn.Module,
    path: str,
    spec: dict[str, Any],
    tensors: dict[str, Tensor],
    clock: Clock,
    compact: bool,
) -> None:
    """Puts a frozen quantized layer at ``path`` and turns its stored codes into ``weight``."""
    old = model.get_submodule(path)
    if type(old) not in QUANTIZED or QUANTIZED[type(old)].__name__ != spec["type"]:
        raise StorageError(f"a {type(old).__name__} where a {spec['type']} was saved", where=path)
    layer = QUANTIZED[type(old)].from_float(old)
    if "weight" in spec:
        grid = Grid.signed(spec["weight"]["bits"], narrow=True)
        if "qmax" in spec["weight"]:
            grid = Grid(grid.bits, -spec["weight"]["qmax"], spec["weight"]["qmax"])
        step = tensors.pop(f"{path}.weight.step")
        shape = tuple(spec["weight"]["shape"])
        dtype = getattr(torch, spec["weight"]["dtype"])
        frozen = CodedWeight(grid, step, dtype) if compact else FrozenWeight(grid, step)
        found = unpack(
            tensors.pop(f"{path}.weight.codes"),
            shape,
            grid.qmin,
            grid.bits,
            torch.int8 if grid.bits <= 8 else torch.int16,
        )
        if shape != tuple(layer.weight.shape):
            raise RuntimeError(f"{path}.weight is {tuple(layer.weight.shape)}, saved was {shape}")
        weight = found if compact else (found * frozen.scale(found)).to(dtype)
        tensors[f"{path}.weight"], tensors[f"{path}.weight_quantizer.step"] = weight, step
        layer.weight_quantizer = frozen
        layer.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    if "input" in spec:
        layer.input_quantizer = _restore_activation(
            spec["input"], f"{path}.input_quantizer", tensors, clock
        )
    replace_module(model, old, layer)


def _restore_activation(
    spec: dict[str, Any], path: str, tensors: dict[str, Tensor], clock: Clock
) -> ActivationQuantizer:
    grid = Grid(spec["bits"], spec["qmin"], spec["qmax"], spec["zero_point"])
    scale: Scale
    if spec["scale"] == "dynamic":
        scale = DynamicScale()
    else:
        if spec["first"] is not None:
            tensors[f"{path}.scale.knots"] = (
                torch.arange(spec["knots"], dtype=torch.float32) + spec["first"]
            )
        scale = TableScale(tensors[f"{path}.scale.knots"], tensors[f"{path}.scale.table"])
    tensors[f"{path}.zero_point"] = torch.tensor(grid.zero_point, dtype=torch.int32)
    if "offset" in spec:
        return OffsetQuantizer(grid, scale, clock, spec["offset"], spec["scale"])
    return ActivationQuantizer(grid, scale, clock, wanted=spec["scale"])
