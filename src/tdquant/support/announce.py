"""Who wants to know of quantized models as they come into being: an integration that marks them
for its ecosystem, so that the ecosystem's own way of saving works.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

LISTENERS: list[Callable[[nn.Module], None]] = []
"""Called with every root model that was quantized, frozen, corrected or loaded."""


def announce(model: nn.Module) -> nn.Module:
    """Tells all listeners of a model; gives it back."""
    for listener in LISTENERS:
        listener(model)
    return model
