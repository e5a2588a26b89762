"""Where a model runs."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn


def device_of(model: Any) -> torch.device:
    """The device that a model's inputs belong on: that of its first parameter or buffer, the
    execution device of an offloaded model, the CPU of anything else.
    """
    if not isinstance(model, nn.Module):
        return torch.device("cpu")
    for module in model.modules():  # accelerate leaves meta tensors in what it offloads
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    tensors = [*model.parameters(), *model.buffers()]
    return next((t.device for t in tensors if t.device.type != "meta"), torch.device("cpu"))


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
