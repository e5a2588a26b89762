"""A copy of a model that owns its structure and shares its numbers."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn


def copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers lie in the memory of the originals: what a backend
    replaces is never held twice.
    """
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        shared = tensor.detach()
        memo[id(tensor)] = (
            nn.Parameter(shared, requires_grad=False)
            if isinstance(tensor, nn.Parameter)
            else shared
        )
    return copy.deepcopy(model, memo)
