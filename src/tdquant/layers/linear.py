r"""Quantized linear layer: ``y = x_hat W_hat^T + b``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers.base import QuantLayer
from tdquant.layers.structure import LINEAR


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` on fake-quantized operands, ``(*, in) -> (*, out)``."""

    geometry = LINEAR

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)
