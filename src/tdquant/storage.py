"""Saving and loading frozen models: a folder of one JSON file and one safetensors file. No pickle.

    model/tdquant.json          format version, how to build the float model, what every layer is
    model/model.safetensors     packed weight codes and their steps, scale tables, and all that
    stayed float

Weight ``W`` is stored as codes (``<layer>.weight.codes``, uint8) and ``<layer>.weight.step``;
loading multiplies them, which gives bit for bit the weights that were saved.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tdquant.models.build as build
from tdquant.clock import Clock, clock_of
from tdquant.errors import FreezeError, StorageError
from tdquant.frozen import is_frozen
from tdquant.grid import Grid
from tdquant.layers import QUANTIZED, quantized_layers, replace_module
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.packing import pack, unpack
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, activation_quantizers
from tdquant.recipe import Recipe
from tdquant.scales import DynamicScale, Scale, TableScale

FORMAT = "tdquant"
VERSION = 1
INDEX, TENSORS = "tdquant.json", "model.safetensors"


def save(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Saves a frozen model to a folder, all of it or nothing.

    Arguments:
        model: What ``freeze`` returned.
        directory: Folder to write; an earlier save there is replaced.

    Returns:
        The folder.

    Raises:
        FreezeError: The model is not frozen.
        StorageError: The folder holds something else than a saved model.
    """
    clock_of(model)
    if not is_frozen(model):
        raise FreezeError(
            "only a frozen model can be saved", fix="tdq.save(tdq.freeze(model), directory)"
        )
    target = Path(directory)
    if target.exists() and not (
        target.is_dir() and (not any(target.iterdir()) or (target / INDEX).exists())
    ):
        raise StorageError(
            "there is something else already",
            where=str(target),
            fix="an empty folder, a new name, or an old save",
        )
    index, tensors = _describe(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    fresh, old = (
        target.with_name(f".{target.name}.{mark}.new"),
        target.with_name(f".{target.name}.{mark}.old"),
    )
    try:
        fresh.mkdir()
        save_file(tensors, fresh / TENSORS, metadata={"format": "pt"})
        (fresh / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Loads a frozen model.

    Arguments:
        directory: Folder that ``save`` wrote.
        model: A fresh float model of the same architecture, for one that cannot be built from its
            configuration. It is changed in place.

    Returns:
        The frozen model, on the CPU, its outputs equal bit for bit to those of the one that was
        saved.

    Raises:
        StorageError: Missing, truncated, foreign or newer files, or tensors and index that
            disagree.
        ModelError: The model cannot be built and none was given.
    """
    folder = Path(directory)
    index = _read_index(folder)
    tensors = _read_tensors(folder / TENSORS)
    if set(tensors) != set(index["tensors"]):
        odd = sorted(set(tensors) ^ set(index["tensors"]))
        raise StorageError(
            f"index and tensors disagree on {len(odd)} names, such as {odd[0]!r}",
            where=str(folder),
            why="the two files are not of one save",
            fix="save the model again",
        )
    if model is None:
        model = build.from_description(index["model"], where=str(folder))
    clock = Clock(model, index["timestep"])
    coverage = index.get("coverage")
    clock.coverage = tuple(coverage) if coverage else None
    if index.get("recipe"):
        model.tdq_recipe = Recipe.from_dict(index["recipe"])  # type: ignore[assignment]
    try:
        for path, spec in index["layers"].items():
            _restore_layer(model, path, spec, tensors, clock)
        for path, operands in index["attention"].items():
            prefix = f"{path}.processor"
            quantizers: dict[str, nn.Module] = {
                name: _restore_activation(spec, f"{prefix}.{name}_quantizer", tensors, clock)
                for name, spec in operands.items()
            }
            block: Any = model.get_submodule(path)
            block.set_processor(QuantAttention(quantizers))
        missing, unexpected = model.load_state_dict(tensors, strict=False)
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
    return model.eval().requires_grad_(False)


def inspect_saved(directory: str | os.PathLike[str]) -> str:
    """A table of what a saved folder holds, without building the model.

    Raises:
        StorageError: As ``load``.
    """
    folder = Path(directory)
    index = _read_index(folder)
    model = index["model"] or {"source": "the caller's", "class": "model"}
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    built = f"{model['source']} {model['class']}"
    lines = [f"{built}, timestep argument {index['timestep']!r}, {size:.2f} MB"]
    rows = [
        (path, spec["type"], spec.get("weight"), spec.get("input"))
        for path, spec in index["layers"].items()
    ]
    for path, operands in index["attention"].items():
        rows += [(f"{path}.{name}", "attention", None, spec) for name, spec in operands.items()]
    width = max([len(row[0]) for row in rows], default=0)
    for path, kind, weight, activation in rows:
        w = f"W{weight['bits']}" if weight else "W float"
        a, scale = "A float", ""
        if activation:
            knots = activation.get("knots", 0)
            a, scale = (
                f"A{activation['bits']}",
                f"table of {knots}" if knots > 1 else "static" if knots else "dynamic",
            )
            scale += f", zero {activation['zero_point']}" if activation["zero_point"] else ""
        lines.append(f"{path:<{width}}  {kind:<12} {w:<8}{a:<8}{scale}".rstrip())
    return "\n".join(lines)


def _describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The index and the tensors of a frozen model."""
    state = {k: v.detach() for k, v in model.state_dict().items() if not k.endswith(".zero_point")}
    layers: dict[str, Any] = {}
    for path, layer in quantized_layers(model):
        spec: dict[str, Any] = {"type": type(layer).__name__}
        frozen = layer.weight_quantizer
        if isinstance(frozen, FrozenWeight):
            spec["weight"] = {
                "bits": frozen.grid.bits,
                "shape": list(layer.weight.shape),
                "dtype": str(layer.weight.dtype).removeprefix("torch."),
            }
            codes = frozen.codes(layer.weight, path)
            del state[f"{path}.weight"]
            state[f"{path}.weight.codes"] = pack(codes, frozen.grid.qmin, frozen.grid.bits)
            state[f"{path}.weight.step"] = state.pop(f"{path}.weight_quantizer.step")
        if isinstance(layer.input_quantizer, ActivationQuantizer):
            spec["input"] = _describe_activation(layer.input_quantizer)
        layers[path] = spec
    attention = {
        path.removesuffix(".processor"): {
            name: _describe_activation(module.quantizer(name)) for name in OPERANDS
        }
        for path, module in model.named_modules()
        if isinstance(module, QuantAttention)
    }
    for path, quantizer in activation_quantizers(model):
        knots = f"{path}.scale.knots"
        if isinstance(quantizer.scale, TableScale) and quantizer.scale.first is not None:
            del state[knots]  # consecutive integers, of which the index has the first
    recipe = getattr(model, "tdq_recipe", None)
    clock = clock_of(model)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "model": build.description(model),
        "timestep": clock.argument,
        "coverage": clock.coverage,
        "recipe": recipe.to_dict() if isinstance(recipe, Recipe) else None,
        "layers": layers,
        "attention": attention,
        "tensors": sorted(state),
    }
    return index, _unshared(state)


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out


def _describe_activation(quantizer: Any) -> dict[str, Any]:
    grid, scale = quantizer.grid, quantizer.scale
    out = {
        "bits": grid.bits,
        "qmin": grid.qmin,
        "qmax": grid.qmax,
        "zero_point": grid.zero_point,
        "scale": scale.kind,
    }
    if isinstance(scale, TableScale):
        out |= {"knots": len(scale.knots), "first": scale.first}
    return out


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        raise StorageError(
            f"no {INDEX} here",
            where=str(folder),
            why="it is not a folder that tdq.save wrote",
            fix="check the path",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            "the index is not JSON", where=str(folder / INDEX), why=str(error)
        ) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StorageError(
            "a foreign format", where=str(folder / INDEX), fix="a folder that tdq.save wrote"
        )
    if index.get("version", 0) > VERSION:
        raise StorageError(
            f"format version {index['version']}, newer than {VERSION}",
            where=str(folder),
            fix="update tdquant",
        )
    needed = {"model", "timestep", "layers", "attention", "tensors"} - set(index)
    if needed:
        raise StorageError(
            f"the index lacks {sorted(needed)}",
            where=str(folder / INDEX),
            fix="save the model again",
        )
    return index


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StorageError(f"no {TENSORS} here", where=str(file.parent)) from error
    except (SafetensorError, OSError) as error:
        raise StorageError(
            "the tensors cannot be read",
            where=str(file),
            why=str(error),
            fix="the file was cut; copy or save it again",
        ) from error


def _restore_layer(
    model: nn.Module, path: str, spec: dict[str, Any], tensors: dict[str, Tensor], clock: Clock
) -> None:
    """Puts a frozen quantized layer at ``path`` and turns its stored codes into ``weight``."""
    old = model.get_submodule(path)
    if type(old) not in QUANTIZED or QUANTIZED[type(old)].__name__ != spec["type"]:
        raise StorageError(f"a {type(old).__name__} where a {spec['type']} was saved", where=path)
    layer = QUANTIZED[type(old)].from_float(old)
    if "weight" in spec:
        grid = Grid.signed(spec["weight"]["bits"], narrow=True)
        step = tensors.pop(f"{path}.weight.step")
        frozen = FrozenWeight(grid, step)
        found = unpack(
            tensors.pop(f"{path}.weight.codes"),
            tuple(spec["weight"]["shape"]),
            grid.qmin,
            grid.bits,
        )
        dtype = getattr(torch, spec["weight"]["dtype"])
        tensors[f"{path}.weight"] = (found * frozen.scale(found)).to(dtype)
        tensors[f"{path}.weight_quantizer.step"] = step
        layer.weight_quantizer = frozen
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
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
    return ActivationQuantizer(grid, scale, clock, wanted=spec["scale"])
