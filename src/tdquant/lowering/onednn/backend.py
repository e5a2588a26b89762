"""``compile(frozen, backend="onednn")``."""

from __future__ import annotations

import torch
from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import BackendError
from tdquant.layers import quantized_layers, replace_module
from tdquant.lowering.backends import Example, register_backend
from tdquant.lowering.onednn.layer import OneDnnLayer, Trials
from tdquant.quantizers import activation_quantizers
from tdquant.scales import bank_tables
from tdquant.support.sharing import copy_sharing_tensors


@register_backend("onednn")
def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
    """Lowers a copy of the frozen model to torch's int8 operators, channels last.

    A layer whose operator is not exact on this processor, or not faster than float on the example
    or else on the first call, computes with rounded inputs in float.

    Raises:
        BackendError: The model is on another device.
    """
    devices = {p.device.type for p in frozen.parameters()}
    if devices - {"cpu"}:
        raise BackendError(
            f"the model is on {', '.join(sorted(devices))}", where="onednn", fix="model.cpu()"
        )
    model = copy_sharing_tensors(frozen)
    trials = Trials()
    for path, layer in list(quantized_layers(model)):
        replace_module(model, layer, OneDnnLayer(layer, path, trials))
    bank_tables(q for _, q in activation_quantizers(model))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
    clock_of(model).invalidate_scale_cache()
    if example is not None:
        with torch.no_grad():
            model(*example)
    return model
