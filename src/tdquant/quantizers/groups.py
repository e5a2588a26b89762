r"""Weights in groups: steps of their own for groups of consecutive inputs, as whole multiples of a
part of the channel's step.

    w_hat = s_c (m_cg / M) q,    |q| <= Q = 2^(b-1) - 1,    m_cg in 1 .. M

with g the group of an entry of row c of the flattened weight ``(C, K)``. M is a power of two with
``M Q <= 127``, so ``m q`` fits int8 and ``s_c / M`` is exact: whoever multiplies codes takes
``m q`` for codes of 8 bits with one step a channel, ``s_c / M``, and gets the very same numbers.
Only files hold q and m apart. m takes 5 bits beside q of 2 and 3 bits, 4 beside 4, 3 beside 5 and
2 beside 6: an eighth of a bit for each weight of 4 bits in groups of 32.

References:
    Dai et al., VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural Network
    Inference, 2021 (https://arxiv.org/abs/2102.04503): integer scales of small groups below one
    of the channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.numerics.grid import Grid

MULTIPLIER_BITS = {2: 5, 3: 5, 4: 4, 5: 3, 6: 2}
"""Bits of a weight's codes -> bits of a multiplier, stored as ``m - 1``."""


def most(grid: Grid) -> int:
    """M, the largest multiplier of codes of a grid."""
    return 1 << MULTIPLIER_BITS[grid.bits]


@dataclass(frozen=True)
class Groups:
    """Multipliers of the groups of a weight.

    Attributes:
        multipliers: m, uint8 ``(C, G)``.
        size: Entries of a row in a group; the last group has the rest.
    """

    multipliers: Tensor
    size: int

    def of(self, channels: slice) -> Groups:
        """Those of some output channels."""
        return Groups(self.multipliers[channels], self.size)

    def spread(self, weight: Tensor) -> Tensor:
        """The multiplier of every entry of a weight ``(C, *)``, uint8 of its shape."""
        each = self.multipliers.repeat_interleave(self.size, 1)
        return each[:, : weight.shape[1:].numel()].reshape(weight.shape)


def no_multipliers(shape: Sequence[int], size: int) -> Groups | None:
    """Groups of a weight ``(C, *)`` whose multipliers are yet to come; None if it has none."""
    count = count_groups(shape, size)
    return Groups(torch.ones(shape[0], count, dtype=torch.uint8), size) if count else None


def count_groups(shape: Sequence[int], size: int) -> int:
    """G for a weight ``(C, *)``: 0 where no row has more than one, which a step for each channel
    serves as well.
    """
    columns = math.prod(shape[1:])
    return -(-columns // size) if 0 < size < columns else 0
