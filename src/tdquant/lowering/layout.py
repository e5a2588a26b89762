"""The layout in memory that convolutions of a CPU are fastest in."""

from __future__ import annotations

import copy

import torch
from torch import nn


def channels_last(model: nn.Module) -> nn.Module:
    """A copy whose two-dimensional convolutions have their weights with channels last: the float
    model at its best, which quantized ones are compared with.
    """
    model = copy.deepcopy(model)
    for p in model.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model
