r"""A linear layer behind a division of its input channels.

    y = (W diag(c)) (x / c) + b

The same in exact arithmetic, whatever c > 0. Where a few channels of the input are far larger than
the rest, one step for the tensor is too coarse for all others: divided by c they shrink, and the
columns of the weight, which have room, grow by as much.

References:
    Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, 2022 (https://arxiv.org/abs/2211.10438), section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.structure import StructuredLayer
from tdquant.scales.base import KeepFloat32Mixin


class ChannelDivide(KeepFloat32Mixin):
    """Divides input channels: ``x (*, C) -> x * inverse``, in the dtype of x.

    Arguments:
        inverse: ``1 / c``, ``(C,)``; float32 whatever the model is cast to.
    """

    inverse: Tensor

    def __init__(self, inverse: Tensor) -> None:
        super().__init__()
        self.register_buffer("inverse", inverse.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.inverse).to(x.dtype)


class BalancedLayer(StructuredLayer):
    """A float linear layer as a division and a linear layer, ``(*, in) -> (*, out)``.

    Arguments:
        layer: The inner layer, its weight not changed.
        inverse: ``1 / c``, ``(in,)``.
    """

    structure = "balance"

    def __init__(self, layer: nn.Module, inverse: Tensor) -> None:
        super().__init__()
        self.divide = ChannelDivide(inverse)
        self.layer = layer

    @classmethod
    def from_float(cls, layer: nn.Module, **spec: Any) -> BalancedLayer:
        """A layer whose channels are still divided by 1, to be filled from a state dict or by
        ``balanced``.

        Raises:
            ConversionError: The layer is not a plain linear one.
        """
        if type(layer) is not nn.Linear:
            raise ConversionError(
                f"a {type(layer).__name__} cannot be balanced",
                where="BalancedLayer",
                why="channels are divided along the last dimension, as nn.Linear has them",
                fix="name linear layers that are not quantized yet",
            )
        device = layer.weight.device
        return cls(layer, torch.ones(layer.in_features, device=device))

    @classmethod
    @torch.no_grad()
    def balanced(cls, layer: nn.Linear, c: Tensor) -> BalancedLayer:
        """The layer with its input channels divided by ``c`` ``(in,)`` and its weight multiplied,
        in place.

        Raises:
            ConversionError: As ``from_float``, or a factor is not positive and finite.
        """
        new = cls.from_float(layer)
        c = c.to(layer.weight.device, torch.float32)
        if c.shape != (layer.in_features,) or not bool((c.isfinite() & (c > 0)).all()):
            raise ConversionError(
                f"factors of shape {tuple(c.shape)} for {layer.in_features} channels",
                where="BalancedLayer",
                why="there is one for each input channel, positive and finite",
            )
        new.divide.inverse.copy_(1 / c)
        # By the inverse's inverse: what was rounded once is rounded the same way in both places.
        layer.weight.copy_(layer.weight.float() / new.divide.inverse)
        return new

    @property
    def weight(self) -> Any:
        """The inner weight, where a model looks for the dtype of a layer."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The inner bias."""
        return self.layer.bias

    def specification(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.divide(x))
