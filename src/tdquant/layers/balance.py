r"""A layer behind a division of its input channels.

    y = (W diag(c)) * (x / c) + b

with W diag(c) the columns W_ij of a linear layer, or the taps W_ij* of a convolution, times c_j.
The same in exact arithmetic, whatever c > 0. Where a few channels of the input are far larger than
the rest, one step for the tensor is too coarse for all others: divided by c they shrink, and the
columns of the weight, which have room, grow by as much. Engines compute the division in the pass
that quantizes.

References:
    Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, 2022 (https://arxiv.org/abs/2211.10438), section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.base import QUANTIZED, QuantLayer
from tdquant.layers.structure import WrappedLayer, channel_dimension
from tdquant.scales.base import KeepFloat32Mixin


class ChannelDivide(KeepFloat32Mixin):
    """Divides input channels: ``x (*, C, d1, ..) -> x * inverse``, in the dtype of x.

    Arguments:
        inverse: ``1 / c``, ``(C,)``; float32 whatever the model is cast to.
        dims: Dimensions behind that of the channels.
    """

    inverse: Tensor

    def __init__(self, inverse: Tensor, dims: int = 0) -> None:
        super().__init__()
        self.dims = dims
        self.register_buffer("inverse", inverse.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.inverse.reshape(-1, *[1] * self.dims)).to(x.dtype)


class BalancedLayer(WrappedLayer):
    """A division and a plain layer, float or quantized, ``(*, in) -> (*, out)`` or
    ``(B, in, *) -> (B, out, *)``.

    Arguments:
        layer: The inner layer, its weight not changed.
        inverse: ``1 / c``, ``(in,)``.
    """

    structure = "balance"

    def __init__(self, layer: nn.Module, inverse: Tensor) -> None:
        super().__init__(layer)
        dimension = channel_dimension(layer)
        assert dimension is not None
        self.divide = ChannelDivide(inverse, -1 - dimension)

    @classmethod
    def from_float(cls, layer: nn.Module, **spec: Any) -> BalancedLayer:
        """A layer whose channels are still divided by 1, to be filled from a state dict or by
        ``balanced``.

        Raises:
            ConversionError: The layer is no plain linear layer or convolution.
        """
        plain = type(layer) in QUANTIZED or isinstance(layer, QuantLayer)
        if not plain or channel_dimension(layer) is None:
            raise ConversionError(
                f"a {type(layer).__name__} cannot be balanced",
                where="BalancedLayer",
                why="it is not known which dimension of its input has the channels",
                fix="name linear layers and convolutions",
            )
        device: Any = layer.weight.device
        return cls(layer, torch.ones(input_channels(layer), device=device, dtype=torch.float32))

    @classmethod
    @torch.no_grad()
    def balanced(cls, layer: nn.Module, c: Tensor) -> BalancedLayer:
        """The float layer with its input channels divided by ``c`` ``(in,)`` and its weight
        multiplied, in place.

        Raises:
            ConversionError: As ``from_float``, a factor is not positive and finite, or a product
                is too large for the dtype of the weight.
        """
        new = cls.from_float(layer)
        new.divide.inverse.copy_(_inverse(layer, c))
        layer.weight.copy_(_multiplied(layer, new.divide.inverse))  # type: ignore[operator]
        return new

    @classmethod
    @torch.no_grad()
    def from_quantized(cls, layer: QuantLayer, c: Tensor | None = None) -> BalancedLayer:
        """The quantized layer behind a division, its weight multiplied and quantized by steps of
        its own. The input quantizer is the very one of ``layer``: a scale that is calibrated
        already was found for inputs that are not divided.

        Arguments:
            layer: A live quantized layer, which stays as it is.
            c: Factors ``(in,)``; None for 1, to be filled from a state dict.

        Raises:
            ConversionError: As ``balanced``, or the weight is frozen.
        """
        if c is None:
            return cls.from_float(layer).train(layer.training)
        inverse = _inverse(layer, c)
        inner = layer.with_weight(_multiplied(layer, inverse), "BalancedLayer")
        return cls(inner, inverse).train(layer.training)

    def specification(self) -> dict[str, Any]:
        return {}

    def whole_weight(self) -> Tensor:
        weight: Tensor = self.layer.weight
        columns = self._columns(weight)
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (wide * columns).to(weight.dtype)

    def shares(self, change: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return [(self.layer, change / self._columns(change))]

    def _columns(self, weight: Tensor) -> Tensor:
        return _columns(self.divide.inverse, weight, getattr(self, "groups", 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.divide(x))


def input_channels(layer: Any) -> int:
    """Channels of what a layer takes."""
    return int(layer.weight.shape[1]) * getattr(layer, "groups", 1)


def _inverse(layer: Any, c: Tensor) -> Tensor:
    """``1 / c`` in float32, checked."""
    c = c.detach().to(layer.weight.device, torch.float32)
    channels = input_channels(layer)
    if c.shape != (channels,) or not bool((c.isfinite() & (c > 0)).all()):
        raise ConversionError(
            f"factors of shape {tuple(c.shape)} for {channels} channels",
            where="BalancedLayer",
            why="there is one for each input channel, positive and finite",
        )
    return 1 / c


def _multiplied(layer: Any, inverse: Tensor) -> Tensor:
    """The weight ``(out, in / groups, *)`` with its columns multiplied, in its dtype."""
    weight = layer.weight.detach()
    columns = _columns(inverse, weight, getattr(layer, "groups", 1))
    # By the inverse's inverse: what was rounded once is rounded the same way in both places.
    found = (weight.to(torch.promote_types(weight.dtype, torch.float32)) / columns).to(
        weight.dtype
    )
    if not found.isfinite().all() and weight.isfinite().all():
        raise ConversionError(
            f"a weight times its factor is too large for {weight.dtype}",
            where="BalancedLayer",
            fix="smaller factors, or a model in float32 or bfloat16",
        )
    return found


def _columns(inverse: Tensor, weight: Tensor, groups: int) -> Tensor:
    """``1 / c`` of each column of a weight ``(out, in / groups, *)``, shaped to broadcast."""
    columns = inverse.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
    return columns.reshape(len(weight), -1, *[1] * (weight.ndim - 2))
