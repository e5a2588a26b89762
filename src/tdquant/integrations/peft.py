"""Adapters of peft on quantized layers: a float branch when loaded, new codes when fused.

peft fuses an adapter into ``weight`` in place. That suits a live model, which rounds the weight at
every call. A frozen layer needs new codes and steps, and its old ones when the adapter is taken
out again.
"""

from __future__ import annotations

import re
import warnings
from contextvars import ContextVar
from typing import Any

import torch
from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.ia3.layer import _ConvNd as IA3Conv
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import _ConvNd as LoraConv
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.freezing import requantize
from tdquant.integrations.importing import wrap_method
from tdquant.layers import QuantLayer, StructuredLayer, quantized_layers
from tdquant.lowering.onednn.layer import OneDnnLayer
from tdquant.lowering.products import ProductLayer
from tdquant.quantizers import FrozenWeight, NoiseWeight, WeightQuantizer
from tdquant.support.hooks import check_readable

KINDS = ("LORA", "LOHA", "LOKR", "IA3")
"""Adapters that call the layer below them. The others compute with its weight, without its input
quantizer, or rotate its input away from what the scales were calibrated on."""

_MERGING = (LoraLinear, LoraConv, LycorisLayer, IA3Linear, IA3Conv)
_COMPILED = (ProductLayer, OneDnnLayer)
_BEFORE = "_tdq_before"
"""Attribute of an adapter fused into a frozen layer: the layer's parameters and quantizer."""
_STEPS = "_tdq_steps"
"""Attribute of an adapter fused into a live layer: the steps of the layer's weight."""
_ENOUGH = 0.8
_FIRST = "fuse or unfuse the adapter of the frozen model, and compile that"
_SHARES: ContextVar[list[tuple[float, float]] | None] = ContextVar("shares", default=None)


def register() -> None:
    """Makes peft fuse into codes, and raise before it changes a model whose quantized layers
    cannot take an adapter.
    """
    wrap_method(BaseTuner, "inject_adapter", _inject)
    for cls in _MERGING:
        wrap_method(cls, "merge", _merge)
        wrap_method(cls, "unmerge", _unmerge)
    wrap_method(BaseTuner, "merge_adapter", warn_of_rounding)
    wrap_method(BaseTuner, "_unload_and_optionally_merge", warn_of_rounding)


def register_fusing() -> None:
    """Makes ``fuse_lora`` of diffusers warn where rounding keeps little of an adapter."""
    from diffusers.loaders.peft import PeftAdapterMixin

    wrap_method(PeftAdapterMixin, "fuse_lora", warn_of_rounding)


def _inject(inject: Any, self: Any, model: nn.Module, adapter_name: str, *a: Any, **k: Any) -> Any:
    config = self.peft_config[adapter_name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    _refuse_compiled(model, "takes no adapter", "add it to the frozen model, and compile that")
    quantized = next(quantized_layers(model), None)
    if quantized is not None and (kind not in KINDS or getattr(config, "target_parameters", None)):
        raise ConversionError(
            f"a quantized layer takes no {kind} adapter",
            where=quantized[0],
            why="it would compute with the weight itself, or on inputs that the scales were not "
            "calibrated on",
            fix=f"an adapter of kind {', '.join(KINDS)}; or merge this one into the float model "
            "before tdq.quantize",
        )
    copied = [rf"(.*\.)?{name}(\..*)?" for name in getattr(config, "modules_to_save", None) or ()]
    for path, layer in quantized_layers(model):
        frozen = isinstance(layer.weight_quantizer, FrozenWeight)
        if frozen and any(re.fullmatch(name, path) for name in copied):
            raise ConversionError(
                "modules_to_save names a frozen layer",
                where=path,
                why="a copy of it would be trained, and codes are not",
                fix="the layer among target_modules, or before tdq.freeze",
            )
    for path, module in model.named_modules():
        if isinstance(module, StructuredLayer) and self._check_target_module_exists(config, path):
            raise ConversionError(
                f"an adapter for a layer that was rewritten ({module.structure})",
                where=path,
                why="its weight is in several layers now, and the adapter is for one",
                fix="before tdq.quantize, or a model that is calibrated with split=False and "
                "Recipe(remedies=...) without rotation and factors, and not balanced",
            )
    return inject(self, model, adapter_name, *a, **k)


def _refuse_compiled(model: nn.Module, what: str, fix: str) -> None:
    """Raises ConversionError if a backend computes the model, or a layer of it."""
    found = next((p for p, m in model.named_modules() if isinstance(m, _COMPILED)), None)
    if found is not None:
        raise ConversionError(
            f"a compiled model {what}",
            where=found or type(model).__name__,
            why="its layers are those of a backend, which hold the products of what was frozen",
            fix=fix,
        )


def _merge(merge: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    base = self.get_base_layer()
    _refuse_compiled(base, "fuses no adapter", _FIRST)
    quantizer, count = getattr(base, "weight_quantizer", None), len(self.merged_adapters)
    if not isinstance(quantizer, FrozenWeight):
        merge(self, *args, **kwargs)
        if len(self.merged_adapters) > count and type(quantizer) in (WeightQuantizer, NoiseWeight):
            _refit(self, base)
        return
    before = dict(base._parameters), quantizer
    old = base.weight.detach()
    base.hold_numbers()
    base.weight = nn.Parameter(old.clone(), requires_grad=False)
    base.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone(), False)
    try:
        merge(self, *args, **kwargs)
        if len(self.merged_adapters) > count:
            asked = base.weight.detach().clone()
            requantize(base)
            _measure(old, asked, base.weight.detach())
    except BaseException:
        del self.merged_adapters[count:]
        _put_back(base, before)
        raise
    if len(self.merged_adapters) == count:
        _put_back(base, before)
    elif not hasattr(self, _BEFORE):
        object.__setattr__(self, _BEFORE, before)


@torch.no_grad()
def _refit(adapter: Any, base: QuantLayer) -> None:
    """Gives the weight of a live layer that has changed steps of least squared error, in place, if
    they are better than those it has: the old ones may clip it.
    """
    weight, old = base.weight.detach(), base.weight_quantizer
    new = old.refitted(weight)

    def error(quantizer: WeightQuantizer) -> float:
        rounded = WeightQuantizer.forward(quantizer, weight)
        return float((rounded - weight).double().square().sum())

    if error(new) < error(old):
        if not hasattr(adapter, _STEPS):
            object.__setattr__(
                adapter, _STEPS, {k: v.clone() for k, v in old.state_dict().items()}
            )
        old.load_state_dict(new.state_dict())


def _unmerge(unmerge: Any, self: Any) -> None:
    if not hasattr(self, _BEFORE):
        unmerge(self)
        if hasattr(self, _STEPS):
            self.get_base_layer().weight_quantizer.load_state_dict(getattr(self, _STEPS))
            delattr(self, _STEPS)
        return
    _refuse_compiled(self.get_base_layer(), "keeps its fused adapter", _FIRST)
    # Not peft's own arithmetic: IA3 would divide again, and warn that it is inexact.
    self.merged_adapters.clear()
    getattr(self, "_caches", {}).clear()  # of DoRA
    _put_back(self.get_base_layer(), getattr(self, _BEFORE))
    delattr(self, _BEFORE)


def _put_back(base: QuantLayer, before: tuple[dict[str, Any], nn.Module]) -> None:
    base._parameters.clear()
    base._parameters.update(before[0])
    base.weight_quantizer = before[1]


def _measure(old: Tensor, asked: Tensor, got: Tensor) -> None:
    """Notes what rounding kept of a change of a weight, for the model's warning; a layer that is
    merged by itself warns in words that are the same for all, which Python shows once.
    """
    delta = (asked - old).double()
    kept, whole = float(((got - old).double() * delta).sum()), float(delta.square().sum())
    shares = _SHARES.get()
    if shares is not None:
        shares.append((kept, whole))
    elif kept < _ENOUGH * whole:
        warnings.warn(
            f"rounding keeps less than {_ENOUGH:.0%} of an adapter merged into a layer: it is "
            "small beside the weight's steps. Unmerged, it is a float branch and is kept whole",
            stacklevel=4,
        )


def warn_of_rounding(fuse: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fuses, and warns if rounding the sums again keeps little of the adapters: the share is that
    of ``<Q(W + D) - W, D>`` in ``<D, D>`` over all layers, W on its grid before.
    """
    if kwargs.get("merge", True):
        _refuse_compiled(self, "fuses no adapter", _FIRST)
        check_readable(self, "fusing")
    shares: list[tuple[float, float]] = []
    token = _SHARES.set(shares)
    try:
        result = fuse(self, *args, **kwargs)
    finally:
        _SHARES.reset(token)
    kept, whole = (sum(column) for column in zip(*shares, strict=True)) if shares else (0, 0)
    if kept < _ENOUGH * whole:
        warnings.warn(
            f"rounding keeps {kept / whole:.0%} of the fused adapter: it is small beside the "
            "weights' steps. Unfused, it is a float branch and is kept whole",
            stacklevel=3,
        )
    return result
