"""The model under evaluation: its description in a record, and how it runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from tdquant.calibration.record import RemedyRecord
from tdquant.calibration.report import RemedyTrial
from tdquant.clock import is_quantized
from tdquant.errors import ModelError
from tdquant.files.digests import hash_tensors
from tdquant.files.documents import json_safe
from tdquant.freezing import freeze, is_frozen
from tdquant.layers import quantized_layers
from tdquant.lowering import compile
from tdquant.lowering.layout import channels_last
from tdquant.model_summary import layer_row
from tdquant.quantizers import activation_quantizers
from tdquant.recipe import Recipe
from tdquant.scales import DynamicScale, TableScale
from tdquant.state import history, recipe_of, state_of
from tdquant.storage.description import describe
from tdquant.storage.stored import pack_tensors


def frozen_of(model: nn.Module) -> nn.Module:
    """The model, frozen if it is quantized and not frozen yet."""
    return freeze(model) if is_quantized(model) and not is_frozen(model) else model


def digest_of(model: nn.Module) -> str:
    """First 16 hex digits of a SHA-256 of every tensor of a float or frozen model and the
    description of its layers, without its history and remedies.
    """
    found = hash_tensors(model.state_dict())
    if is_quantized(model):
        told = ("history", "remedies")
        described = {k: v for k, v in describe(model).items() if k not in told} | {"history": None}
        found.update(json.dumps(described, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


def describe_model(model: nn.Module, name: str, source: str, digest: str) -> dict[str, Any]:
    """The description of a float or frozen model in a record."""
    bits, scale = "float", ""
    recipe = recipe_of(model)
    if is_quantized(model):
        bits, scale = _bits(model, recipe), _scale(model, recipe)
    return json_safe(
        {
            "name": name,
            "source": source,
            "digest": digest,
            "recipe": recipe.to_dict() if isinstance(recipe, Recipe) else None,
            "bits": bits,
            "scale": scale,
            "history": history(model),
            "remedies": _remedies(model),
        }
    )


def _bits(model: nn.Module, recipe: Any) -> str:
    """``W4A4`` or the like: from the recipe, or without one from the layers if all agree."""
    if isinstance(recipe, Recipe):
        mixed = any({"weights", "activations"} & set(c) for c in recipe.overrides.values())
        mixed |= any(one.name == "bits" for one in _trials(model))
        return "mixed" if mixed else f"W{recipe.weights}A{recipe.activations}"
    rows = [layer_row(path, layer) for path, layer in quantized_layers(model)]
    widths = {(row.weight_bits, row.input_bits) for row in rows}
    return "W{}A{}".format(*next(iter(widths))) if len(widths) == 1 else "mixed"


def _remedies(model: nn.Module) -> dict[str, Any] | None:
    """The record of calibration, without what it says of each layer."""
    record = state_of(model).remedies
    if not isinstance(record, RemedyRecord):
        return None
    return {k: v for k, v in record.to_dict().items() if k not in ("layers", "macs")}


def _trials(model: nn.Module) -> tuple[RemedyTrial, ...]:
    record = state_of(model).remedies
    return record.trials if isinstance(record, RemedyRecord) else ()


def _scale(model: nn.Module, recipe: Any) -> str:
    """The kind of activation scale; for ``auto``, the kind it chose."""
    if isinstance(recipe, Recipe) and recipe.scale != "auto":
        return recipe.scale
    scales = [q.scale for _, q in activation_quantizers(model)]
    if any(isinstance(s, TableScale) and not s.static for s in scales):
        return "temporal"
    if any(isinstance(s, DynamicScale) for s in scales):
        return "dynamic"
    return "static" if scales else ""


def describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """Name of a diffusers scheduler, and a digest of it with its configuration."""
    config = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    name = type(scheduler).__name__
    text = json.dumps([name, config], sort_keys=True, default=str)
    return {"name": name, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


def running(
    model: nn.Module, backend: str, shape: tuple[int, ...] | None, batch: int, device: str
) -> tuple[nn.Module, str]:
    """The model as it runs on a device, and the name of what runs it.

    ``"auto"`` and ``"cpu"`` take the first backend of ``tdquant.lowering.backends.PREFERENCE``
    that runs here, so that an interrupted run continues on the same one. ``"simulated"`` is the
    frozen model itself. From the shape of a sample backends choose kernels; None leaves that to
    the first call.

    Raises:
        ModelError: A backend for a float model.
        BackendError: No such backend, or it cannot run the model here.
    """
    model = model.to(device).eval()
    if not is_quantized(model):
        if backend not in ("auto", "float"):
            raise ModelError(
                f"backend {backend!r} for a float model",
                fix="leave it out: backends run frozen models",
            )
        return (channels_last(model) if device == "cpu" else model), "float"
    if backend == "simulated":
        return model, backend
    example = None
    if shape is not None:
        example = (
            torch.zeros(batch, *shape, device=device, dtype=torch.float32),
            torch.tensor(1, device=device),
        )
    compiled = compile(model, backend, example=example)
    return compiled, str(getattr(compiled, "tdq_backend").backend)  # noqa: B009


def megabytes(model: nn.Module) -> float:
    """Size of a float or frozen model's stored tensors."""
    tensors = model.state_dict()
    if is_quantized(model):
        tensors = pack_tensors(tensors, describe(model))  # type: ignore[assignment]
    return sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6


def digest_of_json(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's JSON."""
    text = json.dumps(json_safe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
