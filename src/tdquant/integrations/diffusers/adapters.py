"""Adapters of diffusers on quantized models: what they may change, and what is refused before
anything is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tdquant.errors import ConversionError
from tdquant.integrations.diffusers.config import METHOD
from tdquant.integrations.importing import wrap_method
from tdquant.layers import QuantLayer, StructuredLayer


def extend_models() -> None:
    """Lets ``.to`` of a quantized model take the dtype that the model already has: diffusers
    raises for any dtype, and ``load_ip_adapter`` ends with such a call. Has models that are
    unpickled check fusing, as those that are quantized here do.
    """
    from diffusers.models.modeling_utils import ModelMixin

    def to(move: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "quantization_method", None) is METHOD:
            device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
            if dtype is not None and dtype == self.dtype:
                nn.Module.to(self, dtype=dtype)
                return self if device is None else move(self, device)
        return move(self, *args, **kwargs)

    def set_state(load: Any, self: Any, state: dict[str, Any]) -> None:
        load(self, state)
        if getattr(self, "quantization_method", None) is METHOD:
            check_fusing(self)

    wrap_method(ModelMixin, "to", to)
    wrap_method(ModelMixin, "__setstate__", set_state)


def check_fusing(model: nn.Module) -> None:
    """Makes ``fuse_qkv_projections`` of a model's class, and ``fuse_projections`` of the classes
    of its blocks, raise ConversionError for quantized projections.
    """

    def fuse(method: Any, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for path, module in self.named_modules():
            quantized = isinstance(module, (QuantLayer, StructuredLayer))
            if quantized and path.split(".")[-1] in ("to_q", "to_k", "to_v"):
                raise ConversionError(
                    "projections that are quantized cannot be fused",
                    where=path,
                    why="the fused layer would be a float one, without their scales and codes",
                    fix="model.fuse_qkv_projections() before tdq.quantize",
                )
        return method(self, *args, **kwargs)

    for cls in {type(module) for module in model.modules()}:
        for name in ("fuse_qkv_projections", "fuse_projections"):
            if hasattr(cls, name):
                wrap_method(cls, name, fuse)
