"""``save``: describes a frozen model as an index and tensors, and writes both or neither."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tdquant.clock import clock_of
from tdquant.errors import FreezeError, StorageError
from tdquant.frozen import is_frozen
from tdquant.layers import quantized_layers
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.models import build
from tdquant.packing import pack
from tdquant.quantizers import (
    ActivationQuantizer,
    FrozenWeight,
    OffsetQuantizer,
    activation_quantizers,
)
from tdquant.recipe import Recipe
from tdquant.scales import TableScale
from tdquant.storage.files import FORMAT, INDEX, TENSORS, VERSION


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
                "qmax": frozen.grid.qmax,
                "shape": list(layer.weight.shape),
                "dtype": str(getattr(frozen, "dtype", layer.weight.dtype)).removeprefix("torch."),
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
    if isinstance(quantizer, OffsetQuantizer):
        out["offset"] = quantizer.offset
    if isinstance(scale, TableScale):
        out |= {"knots": len(scale.knots), "first": scale.first}
    return out
