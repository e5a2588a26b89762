r"""A layer over a concatenation, as one layer for each part of it.

    y = sum_i W_i * x_i + b,    x = [x_1, x_2, ...] and W = [W_1, W_2, ...] along input channels

UNets concatenate the main path and a shortcut, whose ranges differ, and hand the result to a
convolution. With its parts apart, each has a scale and weight steps of its own.

References:
    Li et al., Q-Diffusion: Quantizing Diffusion Models, 2023 (https://arxiv.org/abs/2302.04304),
    section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.base import QUANTIZED, QuantLayer
from tdquant.layers.structure import CHANNELS, StructuredLayer, channel_dimension
from tdquant.quantizers import ActivationQuantizer, WeightQuantizer
from tdquant.scales import PendingScale


def split_dimension(layer: nn.Module) -> int | None:
    """The dimension along which the layer can be split, or None if it cannot."""
    return channel_dimension(layer) if getattr(layer, "groups", 1) == 1 else None


class SplitLayer(StructuredLayer):
    """Plain layers over slices of the input channels, ``(B, sum sizes, *) -> (B, out, *)``.

    A float state dict of the layer that it stands for, ``weight`` and ``bias``, loads.

    Arguments:
        parts: A layer for each slice; all but the first without bias.
        sizes: Input channels of each.
    """

    structure = "split"

    def __init__(self, parts: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = tuple(sizes)
        dimension = split_dimension(parts[0])
        assert dimension is not None
        self.dimension = dimension

    @classmethod
    def from_float(cls, layer: nn.Module, **spec: Any) -> SplitLayer:
        """The split layer with copies of the layer's parameters, which may be on meta.

        Arguments:
            layer: A linear layer or a convolution of one group.
            spec: ``sizes``, the channels of each part.

        Raises:
            ConversionError: The layer cannot be split, or not into these sizes.
        """
        sizes = tuple(int(size) for size in spec["sizes"])
        if split_dimension(layer) is None:
            raise ConversionError(
                f"a {type(layer).__name__} cannot be split",
                where="SplitLayer",
                why="only linear layers and convolutions of one group sum over all channels",
            )
        channels = layer.weight.shape[1]  # type: ignore[union-attr, index]
        if len(sizes) < 2 or min(sizes) < 1 or sum(sizes) != channels:
            raise ConversionError(
                f"parts of {', '.join(map(str, sizes)) or 'no'} channels",
                where="SplitLayer",
                why=f"the layer has {channels} input channels",
                fix="two or more positive sizes that add up to them",
            )
        return cls(_slices(layer, sizes), sizes).train(layer.training)

    @classmethod
    def from_quantized(cls, layer: QuantLayer, sizes: Sequence[int]) -> SplitLayer:
        """The split layer of quantized parts: grids and scales of the whole layer, steps and
        groups of weights that fit each part, and pending scales where the whole one has a scale.

        Arguments:
            layer: A quantized linear layer or convolution of one group.
            sizes: Channels of each part.

        Raises:
            ConversionError: The layer cannot be split, or not into these sizes; a part has no
                weight but zero.
        """
        split = cls.from_float(layer, sizes=sizes)
        for i, part in enumerate(split.parts):
            new = type(layer).from_float(part)
            weight, activation = layer.weight_quantizer, layer.input_quantizer
            if isinstance(weight, WeightQuantizer):
                new.weight_quantizer = weight.refitted(new.weight, f"part {i}")
            if isinstance(activation, ActivationQuantizer):
                pending = PendingScale(activation.wanted, f"part {i}")
                new.input_quantizer = activation.twin(activation.grid, pending)
            split.parts[i] = new.train(layer.training)
        return split

    @classmethod
    def whole(cls, tensors: Mapping[str, Tensor], path: str, **spec: Any) -> dict[str, Tensor]:
        parts = [tensors.get(f"{path}.parts.{i}.weight") for i in range(len(spec["sizes"]))]
        found = [part for part in parts if part is not None]
        out = {"weight": torch.cat(found, dim=1)} if len(found) == len(parts) else {}
        bias = tensors.get(f"{path}.parts.0.bias")
        return out if bias is None else out | {"bias": bias}

    def specification(self) -> dict[str, Any]:
        return {"sizes": list(self.sizes)}

    @property
    def main(self) -> Any:
        return self.parts[0]

    def whole_weight(self) -> Tensor:
        return torch.cat([part.weight for part in self.parts], dim=1)  # type: ignore[misc]

    def shares(self, change: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return list(zip(self.parts, change.split(self.sizes, 1), strict=True))

    def __getattr__(self, name: str) -> Any:
        if name in ("in_features", "in_channels"):
            getattr(self.main, name)  # raises what a layer of the other kind does
            return sum(self.sizes)
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        """The sum of the parts on their slices."""
        first, *others = input.split(self.sizes, self.dimension)
        y = self.parts[0](first)
        for part, piece in zip(self.parts[1:], others, strict=True):
            y = y + part(piece)
        return y

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state.pop(prefix + "weight", None)
        if weight is not None:
            for i, piece in enumerate(_cut(weight, self.sizes)):
                state[f"{prefix}parts.{i}.weight"] = piece
        bias = state.pop(prefix + "bias", None)
        if bias is not None:
            state[f"{prefix}parts.0.bias"] = bias
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def _cut(weight: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Slices of the input channels that share no memory with the whole."""
    return [
        piece.clone(memory_format=torch.contiguous_format)
        for piece in weight.detach().split(list(sizes), 1)
    ]


def _slices(layer: Any, sizes: Sequence[int]) -> list[nn.Module]:
    """Plain layers over slices of the input channels of ``layer``."""
    kind = next(k for k in CHANNELS if isinstance(layer, k))
    geometry: type[QuantLayer] = QUANTIZED[kind]
    parts = []
    for i, (size, weight) in enumerate(zip(sizes, _cut(layer.weight, sizes), strict=True)):
        options = {name: getattr(layer, name) for name in geometry.geometry}
        options |= {name: size for name in ("in_channels", "in_features") if name in options}
        has_bias = i == 0 and layer.bias is not None
        part: Any = kind(**options, bias=has_bias, device="meta")
        part.weight = nn.Parameter(weight, layer.weight.requires_grad)
        if has_bias:
            part.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
        parts.append(part)
    return parts
