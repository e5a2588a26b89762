"""Float layers in the place of rewritten ones, for as long as peft looks at them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tdquant.layers import QUANTIZED, QuantLayer, StructuredLayer, structured_layers
from tdquant.layers.structure import CHANNELS, plain_layer, stands_for_one


def float_layer(layer: QuantLayer | StructuredLayer, weight: Tensor, bias: Any) -> Any:
    """A layer of torch with the window of a quantized or rewritten one.

    Arguments:
        layer: The layer.
        weight: Its weight; the very tensor is taken.
        bias: Its bias, a parameter or None; the very one is taken.
    """
    like = plain_layer(layer)
    kind: Any = next(kind for kind in CHANNELS if isinstance(like, kind))
    options = {name: getattr(layer, name) for name in QUANTIZED[kind].geometry}
    new = kind(**options, bias=bias is not None, device="meta")
    new.weight, new.bias = nn.Parameter(weight, requires_grad=False), bias
    return new.train(layer.training)


@contextlib.contextmanager
def standing_in(model: nn.Module, values: bool) -> Iterator[None]:
    """Has float layers stand in for the rewritten layers of a model, be it below adapters; what is
    put around them meanwhile is around the rewritten layers in the end. The layers inside are out
    of sight.

    Arguments:
        model: The model.
        values: Whether weights are read, not shapes and types alone.
    """
    found: dict[int, tuple[StructuredLayer, nn.Module]] = {}
    rewritten = [layer for _, layer in structured_layers(model)]
    inside = {id(part) for layer in rewritten for part in layer.modules()}
    for parent in list(model.modules()):
        if id(parent) in inside:
            continue
        for name, child in parent._modules.items():
            if isinstance(child, StructuredLayer) and stands_for_one(child):
                if id(child) not in found:
                    found[id(child)] = child, _stand_in(child, values)
                parent._modules[name] = found[id(child)][1]
    layers = {id(stand_in): layer for layer, stand_in in found.values()}
    try:
        yield
    finally:
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if id(child) in layers:
                    parent._modules[name] = layers[id(child)]


def _stand_in(layer: StructuredLayer, values: bool) -> nn.Module:
    if values:
        return float_layer(layer, layer.weight.detach(), layer.bias)
    like = plain_layer(layer)
    if isinstance(like, nn.Linear):
        shape = [layer.out_features, layer.in_features]
    else:
        shape = [layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size]
    # One number seen everywhere: no memory for each weight of the model.
    zeros = torch.zeros((), dtype=like.weight.dtype, device=like.weight.device).expand(shape)
    return float_layer(layer, zeros, layer.bias)


def base_of(adapter: Any) -> tuple[Any, Any]:
    """The layer below an adapter, or below several around each other, and the one that has it as
    its ``base_layer``.
    """
    while isinstance(adapter.base_layer, BaseTunerLayer):
        adapter = adapter.base_layer
    return adapter.base_layer, adapter
