"""Listeners for new quantized models: an integration marks them, so that the saving methods of its
ecosystem work.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

LISTENERS: list[Callable[[nn.Module], None]] = []
"""Called with every root model that was quantized, frozen, corrected or loaded."""


def announce(model: nn.Module) -> nn.Module:
    """Calls all listeners with a model, and returns it."""
    for listener in LISTENERS:
        listener(model)
    return model
