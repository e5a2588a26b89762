"""Building a float model from a description in a saved index: diffusers' classes and tdquant's
own, nothing else.

A description never names a module to import: that would let a file run code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tdquant.errors import ModelError
from tdquant.models.compvis.unet import UNetModel
from tdquant.models.pixel_unet import PixelUNet
from tdquant.support.optional import require
from tdquant.support.thread_modes import DrawingFrom, EmptyOnMeta

OWN: dict[str, type[nn.Module]] = {"PixelUNet": PixelUNet, "UNetModel": UNetModel}
"""tdquant's own model classes, each built as ``cls(**model.config)``."""


def description(model: nn.Module) -> dict[str, Any] | None:
    """Describes how to build the float model again; None if that is not known."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if OWN.get(name) is type(model):
        return {"source": "tdquant", "class": name, "config": config}
    if not type(model).__module__.startswith("diffusers.") or config is None:
        return None
    own = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    return {"source": "diffusers", "class": name, "config": own}


def without_weights(spec: dict[str, Any] | None, where: str = "") -> nn.Module:
    """As ``from_description``, for tensors that are to be assigned: most parameters are on the
    meta device, and nothing is drawn from torch's global generator. All else is real.
    """
    with DrawingFrom(torch.Generator()):
        try:
            with EmptyOnMeta():
                model = from_description(spec, where)
        except (
            ModelError,
            NotImplementedError,
            RuntimeError,
        ):  # it computes with what it has allocated
            return from_description(spec, where)
        return from_description(spec, where) if _has_meta_values(model) else model


def _has_meta_values(model: nn.Module) -> bool:
    """Whether a tensor on the meta device is anything but a parameter."""
    for module in model.modules():
        values = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
        if any(isinstance(v, Tensor) and v.is_meta for v in tree_leaves(values)):
            return True
    return False


def from_description(spec: dict[str, Any] | None, where: str = "") -> nn.Module:
    """Builds a fresh float model.

    Raises:
        ModelError: No description was saved, its class is unknown, or its configuration damaged.
        MissingDependencyError: diffusers is not installed.
    """
    if spec is None:
        raise ModelError(
            "the model cannot be built from what was saved",
            where=where,
            why="its class is neither tdquant's nor diffusers'",
            fix="give a fresh float model: tdq.load(directory, model=...)",
        )
    if not isinstance(spec.get("config"), dict):
        # diffusers would take a name, and read a file or ask the hub for it.
        raise ModelError("the model's configuration is damaged", where=where)
    name = str(spec.get("class", ""))
    make: Any = OWN.get(name) if spec.get("source") == "tdquant" else None
    config = spec["config"]
    if spec.get("source") == "diffusers":
        diffusers = require("diffusers", "diffusers")
        cls: Any = getattr(diffusers, name, None)
        if isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin):
            make, config = cls.from_config, {"config": config}  # type: ignore[attr-defined]
    if make is not None:
        try:
            return make(**config).eval()
        except Exception as error:  # classes raise anything over values that they do not expect
            raise ModelError(
                f"{name} cannot be built from its configuration",
                where=where,
                why=(str(error).strip() or type(error).__name__).splitlines()[0],
                fix="the configuration as it was saved",
            ) from error
    raise ModelError(
        f"no model class {spec.get('source')}:{name}",
        where=where,
        fix="update tdquant or diffusers",
    )
