r"""A learned step that is the same at every timestep (LSQ).

The gradient of the step is multiplied by ``g = 1 / sqrt(N Q)``, with N the number of features of
one sample and Q the highest code, without which the step learns hundreds of times faster than the
weights.

Learned by its logarithm,

    s = s_0 e^a,    d s / d a = s

the step moves by shares of itself, whatever its size, and stays positive. ``a`` starts at 0, where
s is exactly ``s_0``.

References:
    Esser et al., Learned Step Size Quantization, 2020 (https://arxiv.org/abs/1902.08153), section
    2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale, check_step, floored, lsq_factor


class StaticScale(Scale):
    """One learned step.

    Arguments:
        start: Its first value.
    """

    kind = "static"

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.step = nn.Parameter(
            torch.tensor(check_step(start, "StaticScale"), dtype=torch.float32)
        )

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        return floored(self.step, lsq_factor(x, grid))


class StaticLogScale(Scale):
    """One learned step, by its logarithm.

    Arguments:
        start: Its first value, s_0.
    """

    kind = "static-log"
    start: Tensor

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.register_buffer(
            "start", torch.tensor(check_step(start, "StaticLogScale"), dtype=torch.float32)
        )
        self.growth = nn.Parameter(torch.tensor(0.0, dtype=torch.float32))

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        return floored(self.start * self.growth.exp(), lsq_factor(x, grid))
