"""Adapters of peft merged into quantized layers, and taken out again.

peft merges into ``weight`` in place. That suits a plain live layer, which rounds the weight at
every call. For a frozen layer, and for a structure, a float layer of the whole weight W stands in.
The change that peft leaves there is spread over the plain layers inside, of which frozen ones get
new codes and steps, and their old ones when the adapter is taken out.
"""

from __future__ import annotations

import warnings
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.freezing import requantize
from tdquant.integrations.peft.stand_ins import base_of, float_layer
from tdquant.layers import QuantLayer, StructuredLayer
from tdquant.layers.structure import channel_dimension, plain_layer, plain_shares
from tdquant.lowering.onednn.layer import OneDnnLayer
from tdquant.lowering.products import ProductLayer
from tdquant.quantizers import FrozenWeight, NoiseWeight, WeightQuantizer
from tdquant.quantizers.rounding import DecidedWeight
from tdquant.support.hooks import check_readable

_COMPILED = (ProductLayer, OneDnnLayer)
_BEFORE = "_tdq_before"
"""Attribute of an adapter merged into a frozen layer: plain layers in it, and what they held."""
_STEPS = "_tdq_steps"
"""Attribute of an adapter merged into a live layer: plain layers in it whose steps were fitted to
the sum, the quantizer that they have, the one before, and its state."""
_ENOUGH = 0.8
_FIRST = "fuse or unfuse the adapter of the frozen model, and compile that"
_SHARES: ContextVar[list[tuple[float, float]] | None] = ContextVar("shares", default=None)


def refuse_compiled(model: nn.Module, what: str, fix: str) -> None:
    """Raises ConversionError if a backend computes the model, or a layer of it."""
    found = next((p for p, m in model.named_modules() if isinstance(m, _COMPILED)), None)
    if found is not None:
        raise ConversionError(
            f"a compiled model {what}",
            where=found or type(model).__name__,
            why="its layers are those of a backend, which hold the products of what was frozen",
            fix=fix,
        )


def merge(method: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Merges adapters into the layer below; one that is frozen is rounded again."""
    base, _ = base_of(self)
    refuse_compiled(base, "fuses no adapter", _FIRST)
    merged = list(self.merged_adapters)
    # Within a merge it is the layer that stands in: DoRA takes others out and merges them again.
    if not isinstance(base, (QuantLayer, StructuredLayer)):
        method(self, *args, **kwargs)
        return
    before = _held(base) if _is_frozen(base) else None
    try:
        changed = _change(method, self, *args, **kwargs)
    except BaseException:
        self.merged_adapters[:] = merged
        _put_back(before or [])
        raise
    if self.merged_adapters == merged:
        _put_back(before or [])
    elif before is None:
        _refit_all(self, changed)
    elif not hasattr(self, _BEFORE):
        object.__setattr__(self, _BEFORE, before)


def unmerge(method: Any, self: Any) -> None:
    """Takes merged adapters out of the layer below: of a frozen one, to the bit."""
    base, _ = base_of(self)
    refuse_compiled(base, "keeps its fused adapter", _FIRST)
    if not isinstance(base, (QuantLayer, StructuredLayer)):
        method(self)
    elif hasattr(self, _BEFORE):
        # Not peft's own arithmetic: IA3 would divide again, and warn that it is inexact.
        self.merged_adapters.clear()
        getattr(self, "_caches", {}).clear()  # of DoRA
        _put_back(getattr(self, _BEFORE))
        delattr(self, _BEFORE)
    else:
        _change(method, self)
        for layer, fitted, quantizer, state in reversed(getattr(self, _STEPS, ())):
            if layer.weight_quantizer is fitted:
                layer.weight_quantizer = quantizer
                quantizer.load_state_dict(state)
        vars(self).pop(_STEPS, None)


def _change(method: Any, adapter: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Has peft change the weight of a layer: a plain live one's in place, that of others in a
    float layer in its place. Returns the plain layers whose weight is another.
    """
    base, holder = base_of(adapter)
    frozen = _is_frozen(base)
    if isinstance(base, QuantLayer) and not frozen:
        method(adapter, *args, **kwargs)
        return [base]
    old, bias = base.weight.detach(), base.bias
    if bias is not None:
        bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    holder.base_layer = whole = float_layer(base, old.clone(), bias)
    try:
        method(adapter, *args, **kwargs)
    finally:
        holder.base_layer = base
    if bias is not None:
        _set(plain_layer(base), "bias", whole.bias.detach(), frozen)
    change = whole.weight.detach().double() - old.double()
    shares = [(part, share) for part, share in plain_shares(base, change) if share.any()]
    for layer, share in shares:
        if _is_frozen(layer):
            layer.hold_numbers()
        _set(layer, "weight", (layer.weight.detach() + share).to(layer.weight.dtype), frozen)
        if _is_frozen(layer):
            requantize(layer)
    if frozen and shares:
        _measure(change, base.weight.detach() - old)
    return [layer for layer, _ in shares]


def _set(layer: Any, name: str, numbers: Tensor, anew: bool) -> None:
    """Gives a layer other numbers, in place or in a tensor of its own: others may share that
    which it has.
    """
    if anew:
        setattr(layer, name, nn.Parameter(numbers, requires_grad=False))
    else:
        getattr(layer, name).data = numbers


def _is_frozen(layer: nn.Module) -> bool:
    return any(isinstance(module, FrozenWeight) for module in layer.modules())


def _held(base: nn.Module) -> list[tuple[Any, dict[str, Any], Any]]:
    """Every plain layer in a layer with its parameters and weight quantizer."""
    plain = (module for module in base.modules() if channel_dimension(module) is not None)
    return [
        (layer, dict(layer._parameters), getattr(layer, "weight_quantizer", None))
        for layer in plain
    ]


def _put_back(before: list[tuple[Any, dict[str, Any], Any]]) -> None:
    for layer, parameters, quantizer in before:
        layer._parameters.clear()
        layer._parameters.update(parameters)
        if quantizer is not None:
            layer.weight_quantizer = quantizer


def _refit_all(adapter: Any, layers: list[Any]) -> None:
    known = list(getattr(adapter, _STEPS, ()))
    for layer in layers:
        quantizer: Any = getattr(layer, "weight_quantizer", None)
        usual = type(quantizer) in (WeightQuantizer, NoiseWeight)
        if not usual and not isinstance(quantizer, DecidedWeight):
            continue
        state = {k: v.clone() for k, v in quantizer.state_dict().items()}
        if _refit(layer):
            known.append((layer, layer.weight_quantizer, quantizer, state))
    if known:
        object.__setattr__(adapter, _STEPS, known)


@torch.no_grad()
def _refit(layer: QuantLayer) -> bool:
    """Gives the weight of a live layer that has changed steps of least squared error, if they are
    better than those it has, which may clip it; returns whether they are. Steps that may be
    trained change in place.
    """
    weight, old = layer.weight.detach(), layer.weight_quantizer
    new = old.refitted(weight)

    def error(quantizer: WeightQuantizer) -> float:
        # Not by the noise of training.
        rounding = type(quantizer) if isinstance(quantizer, DecidedWeight) else WeightQuantizer
        rounded = rounding.forward(quantizer, weight)
        return float((rounded - weight).double().square().sum())

    if error(new) >= error(old):
        return False
    if type(new) is type(old):
        old.load_state_dict(new.state_dict())
    else:
        layer.weight_quantizer = new
    return True


def _measure(asked: Tensor, got: Tensor) -> None:
    """Notes what rounding kept of a change of a weight, for the model's warning; a layer that is
    merged by itself warns in words that are the same for all, which Python shows once.
    """
    kept, whole = float((got * asked).sum()), float(asked.square().sum())
    shares = _SHARES.get()
    if shares is not None:
        shares.append((kept, whole))
    elif kept < _ENOUGH * whole:
        warnings.warn(
            f"rounding keeps less than {_ENOUGH:.0%} of an adapter merged into a layer: it is "
            "small beside the weight's steps. Unmerged, it is a float branch and is kept whole",
            stacklevel=5,
        )


def warn_of_rounding(fuse: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fuses, and warns if rounding the sums again keeps little of the adapters: the share is that
    of ``<Q(W + D) - W, D>`` in ``<D, D>`` over all layers, W on its grid before.
    """
    if kwargs.get("merge", True):
        refuse_compiled(self, "fuses no adapter", _FIRST)
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
