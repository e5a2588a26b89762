"""Building a float model from a description in a saved index: diffusers' classes and tdquant's
own, nothing else.

A description never names a module to import: that would let a file run code.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn

from tdquant.errors import ModelError
from tdquant.models.compvis.unet import UNetModel
from tdquant.models.pixel_unet import PixelUNet
from tdquant.support.optional import require

OWN: dict[str, type[nn.Module]] = {"PixelUNet": PixelUNet, "UNetModel": UNetModel}
"""tdquant's own model classes, each built as ``cls(**model.config)``."""

_BUILDING = threading.Lock()
"""Held by the thread whose parameters go to the meta device."""


def description(model: nn.Module) -> dict[str, Any] | None:
    """Describes how to build the float model again; None if that is not known."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if OWN.get(name) is type(model):
        return {"source": "tdquant", "class": name, "config": config}
    if not type(model).__module__.startswith("diffusers.") or config is None:
        return None
    own = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    return {"source": "diffusers", "class": name, "config": own}


@contextlib.contextmanager
def without_parameters() -> Iterator[None]:
    """Puts the parameters of models built inside, by this thread, on the meta device, so that
    nothing is allocated that assigned tensors would only replace. Buffers are real.
    """
    register, thread = nn.Module.register_parameter, threading.get_ident()

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == thread:
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(self, name, param)

    with _BUILDING:
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


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
