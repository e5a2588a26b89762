"""How much memory a model keeps, and giving back what it does not."""

from __future__ import annotations

import contextlib
import ctypes
from itertools import chain

from torch import nn


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers and of ``packed_tensors`` of lowered layers."""
    own = chain(model.parameters(), model.buffers())
    packed = chain.from_iterable(
        getattr(module, "packed_tensors", ()) for module in model.modules()
    )
    known = {id(tensor): tensor for tensor in chain(own, packed)}
    return sum(tensor.numel() * tensor.element_size() for tensor in known.values())


def trim_heap() -> None:
    """Returns memory that was freed to the system: the C library keeps what packing hundreds of
    layers leaves behind, as much again as the packed model. Where it cannot be asked, nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
