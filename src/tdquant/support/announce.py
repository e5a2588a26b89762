"""Listeners for new quantized models: an integration marks them, so that the saving methods of its
ecosystem work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

LISTENERS: list[Callable[[nn.Module], None]] = []
"""Called with every root model that was quantized, frozen, corrected or loaded."""


def announce(model: M) -> M:
    """Calls all listeners with a model, and returns it."""
    for listener in LISTENERS:
        listener(model)
    return model
