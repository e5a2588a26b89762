r"""Quantized convolutions: ``y = x_hat * W_hat + b``. Padding is real zero, which every grid has
as a code.
"""

from __future__ import annotations

from torch import Tensor, nn

from tdquant.layers.base import QuantLayer
from tdquant.layers.structure import CONVOLUTION


class QuantConv1d(QuantLayer, nn.Conv1d):
    """``nn.Conv1d`` on fake-quantized operands, ``(B, in, L) -> (B, out, L')``."""

    geometry = CONVOLUTION

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` on fake-quantized operands, ``(B, in, H, W) -> (B, out, H', W')``."""

    geometry = CONVOLUTION

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QuantConv3d(QuantLayer, nn.Conv3d):
    """``nn.Conv3d`` on fake-quantized operands, ``(B, in, D, H, W) -> (B, out, D', H', W')``."""

    geometry = CONVOLUTION

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


CONVOLUTIONS = (QuantConv1d, QuantConv2d, QuantConv3d)
"""Every quantized convolution; channels are dimension 1 of what it takes and gives."""
