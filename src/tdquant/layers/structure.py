"""Layers rewritten: one float layer as a small module of plain layers that computes the same.

What no single scale or step can serve, several can: a convolution over a concatenation as one
convolution for each part, a linear layer behind a division of its input channels. The layers
inside are plain ones, so quantizing, freezing, every backend and every exporter take them as they
take any other. Saved models name the structure and its specification, and loading rewrites the
float layer first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

STRUCTURES: dict[str, type[StructuredLayer]] = {}
"""Structure of every name. Registered by subclassing StructuredLayer with a ``structure``."""

CHANNELS: dict[type[nn.Module], int] = {
    nn.Conv3d: -4,
    nn.Conv2d: -3,
    nn.Conv1d: -2,
    nn.Linear: -1,
}
"""Dimension of the input channels in what a layer takes, counted from the end."""


def channel_dimension(layer: nn.Module) -> int | None:
    """The dimension of the input channels in what a layer takes, None if it is not known."""
    return next((d for kind, d in CHANNELS.items() if isinstance(layer, kind)), None)


class StructuredLayer(nn.Module):
    """A layer of several. A subclass names itself and says how it comes from one float layer."""

    structure: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.structure:
            STRUCTURES[cls.structure] = cls

    @classmethod
    def from_float(cls, layer: nn.Module, **spec: Any) -> StructuredLayer:
        """The structure in the place of a float ``layer``, which may have meta parameters.

        Arguments:
            layer: The layer to rewrite.
            spec: What ``specification`` gave.
        """
        raise NotImplementedError

    def specification(self) -> dict[str, Any]:
        """JSON-safe keyword arguments of ``from_float``; tensors belong into the state dict."""
        raise NotImplementedError


def names_of(model: nn.Module, path: str) -> list[str]:
    """The path of a module, and before it the paths of the rewritten layers that it is a part of:
    a pattern for one of them is meant for it as well.
    """
    parts = path.split(".")
    outer = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return [p for p in outer if isinstance(model.get_submodule(p), StructuredLayer)] + [path]


def structured_layers(model: nn.Module) -> Iterator[tuple[str, StructuredLayer]]:
    """Every rewritten layer below a model with its path."""
    for name, module in model.named_modules():
        if isinstance(module, StructuredLayer):
            yield name, module
