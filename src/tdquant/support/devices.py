"""Where a model runs."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import torch
from torch import nn


def device_of(model: Any) -> torch.device:
    """The device that a model's inputs belong on: that of its first parameter or buffer, the
    execution device of an offloaded model, the CPU of anything else.
    """
    if not isinstance(model, nn.Module):
        return torch.device("cpu")
    return _device_below(model) or torch.device("cpu")


def _device_below(model: nn.Module) -> torch.device | None:
    for module in model.modules():  # accelerate leaves meta tensors in what it offloads
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    tensors = chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors if t.device.type != "meta"), None)


def dtype_of(model: Any) -> torch.dtype | None:
    """The floating-point type that a model computes in; None of what is no module, or has no
    weights.
    """
    if isinstance(model, nn.Module):
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.is_floating_point():
                own = getattr(model, "dtype", None)  # diffusers: not that of parts left in float32
                return own if isinstance(own, torch.dtype) else weight.dtype
    return None


def device_at(model: nn.Module, path: str) -> torch.device:
    """The device that a module at ``path`` below a model computes on: that of the nearest module
    around it with tensors, or with a hook that moves them.
    """
    while path:
        around = model.get_submodule(path)
        device = _device_below(around)
        if device is not None:
            return device
        path = path.rpartition(".")[0]
    return device_of(model)


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
