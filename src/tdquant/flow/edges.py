"""Which layers feed which, directly: the data flow of one call between the layers of a model.

While ``FlowMode`` is active every tensor carries a set of sources, as the bits of an integer: what
torch computes has the sources of what it was computed from. Sources belong to memory, not to
tensor objects, so views, casts and operations in place need no rules of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from tdquant.calls.call import tensors_in

_FRESH = (
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "randint_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
)  # fmt: skip
"""Functions that take the size of a tensor, and none of its values."""

_WRITES = ("__setitem__", "__set__")
"""Functions that return nothing and write to their first argument."""

_GATHERS = ("__getitem__", "index_select", "gather", "take", "take_along_dim", "masked_select")

ROUTED = 1
"""Source of tensors whose rows were picked by values that a sample has."""

SAMPLE = 2
"""Source of what is computed from the sample without a layer between."""

CONDITION = 4
"""Source of what is computed from other arguments than the sample and the timestep."""

LAYERS = 3
"""Number of the first layer's bit."""


class FlowMode(TorchFunctionMode):
    """While it is active, follows sources through every torch function."""

    def __init__(self) -> None:
        super().__init__()
        # The weak references keep addresses from being used again.
        self._sources: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # what a compiled part gives has no sources
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        sources = 0
        if name not in _FRESH:
            for tensor in tensors_in((args, kwargs)):
                sources |= self.sources(tensor)
            if name in _GATHERS and any(map(self.sources, tensors_in((args[1:], kwargs)))):
                sources |= ROUTED
        result = func(*args, **kwargs)
        if sources:
            written = args[:1] if name in _WRITES else result
            for tensor in tensors_in(written):
                self.add(tensor, sources)
        return result

    def sources(self, tensor: Tensor) -> int:
        """The sources of a tensor."""
        key = _storage(tensor)
        return 0 if key is None else self._sources.get(key, (None, 0))[1]

    def add(self, tensor: Tensor, sources: int) -> None:
        """Adds sources to those of a tensor."""
        self.put(tensor, sources | self.sources(tensor))

    def put(self, tensor: Tensor, sources: int) -> None:
        """Gives a tensor these sources and no others."""
        key = _storage(tensor)
        if key is not None:
            known = self._sources.get(key)
            reference = StorageWeakRef(tensor.untyped_storage()) if known is None else known[0]
            self._sources[key] = reference, sources


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or a subclass without memory
        return None
