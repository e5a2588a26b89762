"""Finds the blocks of a model, which are reconstructed one after the other.

A block is a smallest module that the model calls with a tensor and that holds two or more
quantized layers, such as a residual block, attention, or a transformer's feed-forward part. A
quantized layer outside of these is a block by itself. One call of the model shows what is called,
and in which order; the model's family plays no part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.layers import QuantLayer, StructuredLayer, quantized_layers
from tdquant.quantizers import WeightQuantizer
from tdquant.support.hooks import hooked

SCOPES = ("layer", "block", "model")


def find_blocks(model: nn.Module, call: Call, scope: str = "block") -> list[str]:
    """Paths of the blocks in the order in which a call of the model reaches them.

    Arguments:
        model: A quantized model.
        call: One call of it.
        scope: ``"block"``, ``"layer"`` for every quantized layer alone, or ``"model"`` for the
            whole model, whose path is empty.
    """
    layers = dict(learned_layers(model))
    if scope == "model":
        return [""]
    order = called(model, call)
    if scope == "layer":
        return [path for path in order if path in layers]
    inside = {
        path: [layer for layer in layers if layer.startswith(f"{path}.")]
        for path in order
        if path and not _rewritten(model, path)
    }
    several = [path for path, found in inside.items() if len(found) > 1]
    smallest = [
        path for path in several if not any(other.startswith(f"{path}.") for other in several)
    ]
    covered = {layer for path in smallest for layer in inside[path]}
    return [path for path in order if path in smallest or (path in layers and path not in covered)]


def learned_layers(model: nn.Module) -> list[tuple[str, QuantLayer]]:
    """The layers whose rounding can be learned, with their paths."""
    return [
        (path, layer)
        for path, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, WeightQuantizer)
    ]


@torch.no_grad()
def called(model: nn.Module, call: Call) -> list[str]:
    """Paths of the modules that a call reaches with a tensor, in order of their first use."""
    found: dict[str, None] = {}

    def note(path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            found.setdefault(path)

    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs, path=path: note(path, args, kwargs), with_kwargs=True
        )
        for path, module in model.named_modules()
    ]
    with hooked(hooks):
        run(model, call)
    return list(found)


def _rewritten(model: nn.Module, path: str) -> bool:
    """Whether the module is, or is part of, one float layer rewritten as several."""
    parts = path.split(".")
    return any(
        isinstance(model.get_submodule(".".join(parts[:depth])), StructuredLayer)
        for depth in range(1, len(parts) + 1)
    )
