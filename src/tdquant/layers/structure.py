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

LINEAR = ("in_features", "out_features")
"""Sizes of a linear layer, as its constructor takes them."""

CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
"""Sizes and window of a convolution, as its constructor takes them."""

_LAYER = ("bias", *LINEAR, *CONVOLUTION)
"""Attributes of a linear layer or a convolution besides its weight."""


def channel_dimension(layer: nn.Module) -> int | None:
    """The dimension of the input channels in what a layer takes, None if it is not known."""
    return next((d for kind, d in CHANNELS.items() if isinstance(layer, kind)), None)


class StructuredLayer(nn.Module):
    """A layer of several. A subclass names itself and says how it comes from one float layer.

    It has the attributes of the layer that it stands for, as models and adapters ask for them:
    ``bias``, ``stride`` and so on are those of ``main``, and ``weight`` is formed from the weights
    inside whenever it is read.
    """

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

    @property
    def main(self) -> Any:
        """The layer inside that has the bias and the window of the one it stands for, which may
        be a structure as well; None if none does.
        """
        return None

    def whole_weight(self) -> Tensor:
        """The weight ``(out, in / groups, *)`` of the layer that it stands for. Layers inside,
        plain ones or structures, have theirs as ``weight``.
        """
        raise NotImplementedError

    def shares(self, change: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Layers inside, plain ones or structures, each with what its weight changes by where
        that of the layer that it stands for changes: a linear map.

        Arguments:
            change: Of the shape of ``whole_weight``, float64; so is what is returned.
        """
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if (name == "weight" or name in _LAYER) and (main := self.main) is not None:
            # Layers of backends keep an empty weight, for those who ask for its type.
            if name == "weight" and stands_for_one(self) and main.weight.numel():
                return self.whole_weight()
            return getattr(main, name)
        return super().__getattr__(name)


class WrappedLayer(StructuredLayer):
    """A structure around one plain layer.

    Arguments:
        layer: The inner layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    @property
    def main(self) -> Any:
        return self.layer


def stands_for_one(layer: nn.Module) -> bool:
    """Whether a layer is plain, or a structure that says, as all in it do, which weight it stands
    for and how a change of it is spread.
    """
    return not any(
        isinstance(module, StructuredLayer)
        and (
            module.main is None
            or type(module).whole_weight is StructuredLayer.whole_weight
            or type(module).shares is StructuredLayer.shares
        )
        for module in layer.modules()
    )


def plain_layer(layer: Any) -> Any:
    """The plain layer that has the bias and the window of a layer, plain or a structure."""
    return plain_layer(layer.main) if isinstance(layer, StructuredLayer) else layer


def plain_shares(layer: Any, change: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Every plain layer in a layer, plain or a structure that ``stands_for_one``, with what its
    weight changes by where that of the whole changes.
    """
    if not isinstance(layer, StructuredLayer):
        yield layer, change
        return
    for part, share in layer.shares(change):
        yield from plain_shares(part, share)


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
