r"""A quantizer whose lowest code stands for a fixed real number, and none for zero.

    q = clip(round((x - o) / s), 0, high),    x_hat = s q + o

The TDQ authors quantize SiLU outputs this way, with o its minimum. Real zero is off this grid, so
the zeros that a convolution pads with are no code, and its product is

    sum x_hat w_hat = s s_w sum q q_w + o s_w sum_{inside} q_w

It exists to run their checkpoints; a zero point costs nothing and keeps zero on the grid.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdquant.clock import Clock
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers.activation import ActivationQuantizer
from tdquant.scales.base import Scale

SILU_MINIMUM = -0.2785
"""Least value of SiLU, as published."""


class OffsetQuantizer(ActivationQuantizer):
    """Fake-quantizes ``x - offset`` and adds the offset again, ``(B, *) -> (B, *)``.

    Arguments:
        grid: Its codes; the lowest is 0.
        scale: Gives its step.
        clock: Where the timestep of the call in progress is read.
        offset: The real number o that code 0 stands for.
        wanted: Kind of the scale.
        options: Options of the scale that calibration creates.
        dropout: Rate p of the dropout in front of the quantizer. It divides what it keeps by 1 - p
            in training, where o is divided by the same.

    Attributes:
        offset: o in evaluation.
    """

    def __init__(
        self,
        grid: Grid,
        scale: Scale,
        clock: Clock,
        offset: float = SILU_MINIMUM,
        wanted: str = "auto",
        options: dict[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, scale, clock, symmetric=True, wanted=wanted, options=options)
        self.offset, self.dropout = offset, dropout

    def forward(self, x: Tensor) -> Tensor:
        scale = self.step(x)
        offset = self.offset / (1 - self.dropout) if self.training else self.offset
        shifted = x.float() - offset
        quantized = fake_quantize(shifted, scale, self.grid.low, self.grid.high) + offset
        return quantized.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}"
