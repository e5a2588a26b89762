"""Layers rewritten: one float layer as a small module of plain layers that computes the same.

What no single scale or step can serve, several can: a convolution over a concatenation as one
convolution for each part, a linear layer behind a division of its input channels. The layers
inside are plain ones, so quantizing, freezing, every backend and every exporter take them as they
take any other. Saved models name the structure and its specification, and loading rewrites the
float layer first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tdquant.errors import StorageError

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
    least_bits: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Least bits of weight and input of plain layers in it, by name, whatever a recipe says."""

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

    @classmethod
    def from_quantized(cls, layer: Any, *args: Any, **kwargs: Any) -> StructuredLayer:
        """The structure in the place of a live quantized ``layer``, of quantized layers."""
        raise NotImplementedError

    @classmethod
    def blank(cls, layer: Any, **spec: Any) -> StructuredLayer:
        """The structure in the place of a live quantized ``layer``, whose tensors are loaded
        afterwards.

        Arguments:
            layer: The layer to rewrite.
            spec: What ``specification`` gave.
        """
        return cls.from_quantized(layer, **spec)

    @classmethod
    def whole(cls, tensors: Mapping[str, Tensor], path: str, **spec: Any) -> dict[str, Tensor]:
        """A weight and bias of the shapes that the layer had before it was rewritten, as far as
        tensors of a state dict have them.

        Arguments:
            tensors: The state dict.
            path: Of the structure in it.
            spec: What ``specification`` gave.
        """
        names = {n: f"{path}.layer.{n}" for n in ("weight", "bias")}
        return {n: tensors[name] for n, name in names.items() if name in tensors}

    def specification(self) -> dict[str, Any]:
        """JSON-safe keyword arguments of ``from_float``; tensors belong into the state dict."""
        raise NotImplementedError


class WrappedLayer(StructuredLayer):
    """A structure around one plain layer.

    Arguments:
        layer: The inner layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    @property
    def weight(self) -> Any:
        """The inner weight, where a model looks for the dtype of a layer."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The inner bias."""
        return self.layer.bias


def structure_named(name: str, where: str = "") -> type[StructuredLayer]:
    """The structure of a name.

    Raises:
        StorageError: There is none: a newer version wrote it.
    """
    if name not in STRUCTURES:
        raise StorageError(f"no structure {name!r}", where=where, fix="update tdquant")
    return STRUCTURES[name]


def names_of(model: nn.Module, path: str) -> list[str]:
    """The path of a module, and before it the paths of the rewritten layers that it is a part of:
    a pattern for one of them is meant for it as well.
    """
    parts = path.split(".")
    outer = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return [p for p in outer if isinstance(model.get_submodule(p), StructuredLayer)] + [path]


def least_bits(model: nn.Module, path: str) -> tuple[int, int]:
    """Least bits of weight and input of a layer in a structure; 0 of others."""
    parent, _, name = path.rpartition(".")
    outer = model.get_submodule(parent)
    return outer.least_bits.get(name, (0, 0)) if isinstance(outer, StructuredLayer) else (0, 0)


def structured_layers(model: nn.Module) -> Iterator[tuple[str, StructuredLayer]]:
    """Every rewritten layer below a model with its path."""
    for name, module in model.named_modules():
        if isinstance(module, StructuredLayer):
            yield name, module
