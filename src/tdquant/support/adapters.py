"""Adapters that other libraries have put into a model, found by the names of modules."""

from __future__ import annotations

from torch import nn

PEFT = "a model with adapters of peft"
IMAGE = "a model with an IP-Adapter"


def adapters_of(model: nn.Module) -> tuple[str, str] | None:
    """What kind of adapter a model has, and the path of the first layer with one, or None."""
    for path, module in model.named_modules():
        if path.endswith(".base_layer"):
            return PEFT, path.removesuffix(".base_layer")
        if "IPAdapter" in type(module).__name__:
            return IMAGE, path
    return None
