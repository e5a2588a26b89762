"""Adapters of peft on quantized layers: a float side branch when loaded, new codes when fused.

peft adds a fused adapter to ``weight`` in place. That suits a live model, which rounds the weight
at every call. A frozen layer needs new codes and steps, and its old ones when the adapter is taken
out again.
"""

from __future__ import annotations

from typing import Any

import peft.tuners.lora.model as lora
from peft.tuners.lora.layer import Conv1d, Conv2d, Linear
from torch import nn

from tdquant.errors import ConversionError
from tdquant.freezing import requantize
from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear, StructuredLayer
from tdquant.quantizers import FrozenWeight


class Requantizing:
    """Mixin for a LoRA layer of peft with a quantized base layer."""

    _before: tuple[dict[str, Any], nn.Module] | None = None
    get_base_layer: Any
    merged: bool

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the active adapters to the weight and rounds the sum, with new steps."""
        base: QuantLayer = self.get_base_layer()
        if not isinstance(base.weight_quantizer, FrozenWeight):
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
            return
        before = dict(base._parameters), base.weight_quantizer
        base.bias = None if base.bias is None else nn.Parameter(base.bias.clone(), False)
        base.hold_numbers()
        base.weight = nn.Parameter(base.weight.clone(), requires_grad=False)
        try:
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
            if self.merged:
                requantize(base)
        except BaseException:
            _put_back(base, before)
            raise
        if not self.merged:
            _put_back(base, before)
        elif self._before is None:
            self._before = before

    def unmerge(self) -> None:
        """Takes all adapters out again."""
        super().unmerge()  # type: ignore[misc]
        if self._before is not None:
            base = self.get_base_layer()
            _put_back(base, self._before)
            self._before = None


def _put_back(base: QuantLayer, before: tuple[dict[str, Any], nn.Module]) -> None:
    base._parameters.clear()
    base._parameters.update(before[0])
    base.weight_quantizer = before[1]


class QuantLinearAdapter(Requantizing, Linear):
    """LoRA on a QuantLinear."""


class QuantConv1dAdapter(Requantizing, Conv1d):
    """LoRA on a QuantConv1d."""


class QuantConv2dAdapter(Requantizing, Conv2d):
    """LoRA on a QuantConv2d."""


ADAPTERS: dict[type[nn.Module], Any] = {
    QuantLinear: QuantLinearAdapter,
    QuantConv1d: QuantConv1dAdapter,
    QuantConv2d: QuantConv2dAdapter,
}


def register() -> None:
    """Has peft take the classes above for adapters of quantized layers."""
    default = lora.dispatch_default
    if getattr(default, "tdquant", False):
        return

    def dispatch(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> Any:
        inner: Any = getattr(target, "get_base_layer", None)
        base: Any = target if inner is None else inner()
        if isinstance(base, StructuredLayer):
            raise ConversionError(
                f"an adapter for a layer that was rewritten ({base.structure})",
                where=str(kwargs.get("current_key", type(base).__name__)),
                why="its weight is in several layers now, and the adapter is for one",
                fix="tdq.calibrate(..., split=False), and no tdq.balance of this layer",
            )
        adapter = ADAPTERS.get(type(base))
        if adapter is None or kwargs.get("parameter_name") is not None:
            return default(target, adapter_name, config=config, **kwargs)
        if config.use_dora:  # its formula reads the weight
            base.hold_numbers()
        kwargs.pop("parameter_name", None)
        return adapter(target, adapter_name, config=config, **kwargs)

    dispatch.tdquant = True  # type: ignore[attr-defined]
    lora.dispatch_default = dispatch  # type: ignore[assignment]
