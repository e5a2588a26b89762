"""Gradient checkpointing: blocks forget their activations and compute them again when the backward
pass needs them, with the scales of the timestep that they first saw.

The random state is preserved as well, or dropout would draw other numbers. ``clock.preserve`` is
for blocks that are compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from tdquant.clock import clock_of, is_quantized
from tdquant.errors import TrainingError


def recompute_blocks(model: nn.Module) -> int:
    """Enables gradient checkpointing in every block of the model that supports it: those of
    diffusers and of tdquant's latent-diffusion UNet.

    Returns:
        The number of blocks.

    Raises:
        TrainingError: The model has none.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if is_quantized(model):
        options["context_fn"] = clock_of(model).preserve

    def run(block: Any, *args: Any) -> Any:
        return checkpoint(block, *args, **options)

    blocks = 0
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module._gradient_checkpointing_func = run  # type: ignore[assignment]
            module.gradient_checkpointing = True  # type: ignore[assignment]
            blocks += 1
        elif hasattr(module, "use_checkpoint"):
            module.use_checkpoint = True  # type: ignore[assignment]
            blocks += 1
    if not blocks:
        raise TrainingError(
            "gradient checkpointing is not supported by this model",
            where=type(model).__name__,
            why="no block of it has a switch for it (gradient_checkpointing, use_checkpoint)",
            fix="train without it, with a smaller batch or accumulate=",
        )
    return blocks


@contextlib.contextmanager
def recomputing_blocks(model: nn.Module) -> Iterator[None]:
    """Enables gradient checkpointing as ``recompute_blocks`` does, while the context lasts."""
    names = ("gradient_checkpointing", "_gradient_checkpointing_func", "use_checkpoint")
    switches = [vars(module) for module in model.modules()]
    before = [{name: own[name] for name in names if name in own} for own in switches]
    recompute_blocks(model)
    try:
        yield
    finally:
        for own, found in zip(switches, before, strict=True):
            for name in names:
                own.pop(name, None)
            own.update(found)
