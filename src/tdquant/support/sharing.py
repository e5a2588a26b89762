"""Copies of models with modules of their own and shared tensors."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn


def copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers share memory with the originals, so that a backend
    that replaces layers never doubles the memory.
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
