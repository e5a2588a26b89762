r"""Learning rates over steps, and the state of an optimizer by the names of its parameters.

    rate(step) = base * min(1, (step + 1) / warmup) * decline(step)

with ``decline`` 1, or half a cosine down to zero at the last step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import StorageError
from tdquant.training.sharding import like, whole

SCHEDULES = ("constant", "cosine")


def rate_factor(step: int, steps: int, warmup: int, schedule: str = "constant") -> float:
    """Factor on every group's learning rate at ``step`` of ``steps``."""
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return factor * (0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of every parameter: ``"<parameter>|<entry>"`` -> tensor on the CPU."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{names[id(p)]}|{entry}": whole(torch.as_tensor(value)).cpu()
        for p, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]
) -> None:
    """Puts back what ``optimizer_tensors`` gave.

    Raises:
        StorageError: It belongs to other parameters.
    """
    known = dict(model.named_parameters())
    states: dict[str, dict[str, Any]] = {}
    for key, value in saved.items():
        name, _, entry = key.rpartition("|")
        if name not in known:
            raise StorageError(f"optimizer state of an unknown parameter {name!r}")
        parameter = known[name]
        fits = value.shape == parameter.shape
        # Fused Adam wants its step where the parameter is.
        moved = like(value, parameter) if fits else value.to(parameter.device)
        states.setdefault(name, {})[entry] = moved
    for name, state in states.items():
        optimizer.state[known[name]] = state
