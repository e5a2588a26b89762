r"""NIPQ: noise in the place of rounding while the step is learned.

    training:    x_hat = clip(x, s low, s high) + s u,    u ~ U(-1/2, 1/2)
    else:        x_hat = s clip(round(x / s), low, high)

The noise is as large as the error of rounding, and the loss is differentiable in x and s without a
straight-through estimate. The step's gradient has LSQ's factor.

References:
    Shin et al., NIPQ: Noise Proxy-Based Integrated Pseudo-Quantization, 2023
    (https://arxiv.org/abs/2206.00820), section 3.
"""

from __future__ import annotations

from torch import Tensor

from tdquant.numerics.fake_quantize import noise_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales.static import StaticScale


class NoiseScale(StaticScale):
    """One learned step, with pseudo-quantization noise in training.

    Arguments:
        start: Its first value.
    """

    kind = "nipq"

    def quantize(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        if self.training:
            return noise_quantize(x, step, grid.low, grid.high)
        return super().quantize(x, step, grid)
