"""Quantized weights that the backward pass computes again instead of keeping them.

A product keeps its operands for the backward pass, and so, in training, a second copy of every
weight: the quantized one. It is a function of the weight and its step, which are there anyway, and
a pass over memory to compute. ``forgetting_weights`` has autograd drop it and ask for it again.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.quantizers import WeightQuantizer
from tdquant.support.hooks import hooked


@contextlib.contextmanager
def forgetting_weights(model: nn.Module) -> Iterator[None]:
    """A context for forward passes whose graphs do not keep quantized weights.

    Gradients are the same to the bit. Blocks under gradient checkpointing have their own way of
    forgetting, and quantizers that draw noise would draw other noise; both are left alone.

    Arguments:
        model: A quantized model in training. Its weights must not change before the backward pass.
    """
    alive: dict[int, Callable[[], Tensor]] = {}

    def remember(quantizer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        (weight,) = args
        place, versions = output.data_ptr(), _versions(quantizer, weight)

        def again() -> Tensor:
            if _versions(quantizer, weight) != versions:
                raise RuntimeError(
                    "a weight or its step was modified in place between the forward and the "
                    "backward pass"
                )
            with torch.no_grad():
                return quantizer.forward(weight)

        alive[place] = again
        # Another tensor may be at the same place once this one is gone.
        weakref.finalize(output, alive.pop, place, None).atexit = False

    def pack(tensor: Tensor) -> Any:
        again = alive.get(tensor.data_ptr()) if tensor.numel() else None
        if again is None:
            return tensor
        return again, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        again, *geometry = packed
        return again().as_strided(*geometry)

    # Hooks of somebody else may change what comes out.
    own = [m for m in model.modules() if type(m) is WeightQuantizer and not m._forward_hooks]
    with (
        hooked([quantizer.register_forward_hook(remember) for quantizer in own]),
        torch.autograd.graph.saved_tensors_hooks(pack, unpack),
    ):
        yield


def _versions(quantizer: nn.Module, weight: Tensor) -> list[int]:
    """How often each tensor that the quantized weight depends on was modified."""
    return [weight._version, *(p._version for p in quantizer.parameters())]
