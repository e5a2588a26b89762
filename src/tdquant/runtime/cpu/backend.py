"""``compile(frozen, backend="cpu")``."""

from __future__ import annotations

import torch
from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import BackendError
from tdquant.layers import quantized_layers, replace_module
from tdquant.models.compvis.blocks import GroupNorm32
from tdquant.quantizers import activation_quantizers
from tdquant.runtime.compile import Example, register_backend
from tdquant.runtime.cpu.deferred import DeferredNorm
from tdquant.runtime.cpu.layer import CpuLayer, Trials
from tdquant.runtime.native import missing
from tdquant.scales import bank_tables
from tdquant.sharing import copy_sharing_tensors

_NORMS = (nn.GroupNorm, GroupNorm32)


@register_backend("cpu")
def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
    """A copy of the frozen model on integer kernels, channels last; every layer runs the fastest
    that is exact on this machine, as measured on the example or else on the first call.

    Raises:
        BackendError: The model is on another device.
    """
    devices = {p.device.type for p in frozen.parameters()}
    if devices - {"cpu"}:
        raise BackendError(
            f"the model is on {', '.join(sorted(devices))}", where="cpu", fix="model.cpu()"
        )
    model = copy_sharing_tensors(frozen)
    trials = Trials()
    for path, layer in list(quantized_layers(model)):
        replace_module(model, layer, CpuLayer(layer, path, trials))
    bank_tables(q for _, q in activation_quantizers(model))
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.GroupNorm) and type(module) in _NORMS and not missing():
            replace_module(model, module, DeferredNorm(module))
    clock_of(model).forget_laws()
    if example is not None:
        with torch.no_grad():
            model(*example)
    return model
