"""Tensors that live on one process, and tensors that are sharded over several (FSDP)."""

from __future__ import annotations

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The full value: gathers a sharded tensor, which every process has to ask for."""
    tensor = tensor.detach()
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """A full value placed on the device, and in the shards, of ``pattern``."""
    value = value.to(pattern.device)
    mesh = getattr(pattern, "device_mesh", None)
    if mesh is None:
        return value.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, mesh, pattern.placements)  # type: ignore[attr-defined]


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copies a full value into a tensor, sharded or not."""
    target.copy_(like(value, target))
