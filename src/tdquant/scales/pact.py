r"""PACT: the clipping range of an activation is learned, and the step follows from it.

    s = alpha / high,    d x_hat / d alpha = 1           where x > alpha
                                             low / high  where x < alpha low / high
                                             0           between

A signed grid is clipped at both ends. Rounding adds nothing to the gradient: alpha grows by the
values that it clips, and nothing but the loss of the others makes it shrink. The paper decays it;
here no step is decayed.

References:
    Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018
    (https://arxiv.org/abs/1805.06085).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.numerics.fake_quantize import clip_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale, check_step, floored


class PactScale(Scale):
    """The step of a learned clipping range.

    Arguments:
        alpha: First upper end of the range; where no code is positive, of its lower end.
    """

    kind = "pact"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(
            torch.tensor(check_step(alpha, "PactScale"), dtype=torch.float32)
        )

    @classmethod
    def from_step(cls, step: float, grid: Grid) -> PactScale:
        return cls(step * _reach(grid))

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        return floored(self.alpha / _reach(grid))

    def quantize(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        return clip_quantize(x, step, grid.low, grid.high)


def _reach(grid: Grid) -> int:
    """Steps from zero to alpha."""
    return grid.high or -grid.low
