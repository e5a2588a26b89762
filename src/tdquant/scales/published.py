r"""The temporal scale of TDQ's authors' checkpoints, to the last bit.

    s(t) = softplus(MLP(emb(t)))

It differs from ``TemporalScale`` in what the network sees, the UNet's own sinusoidal embedding of
the raw timestep, in the missing floor, and in arithmetic: float32, one row a sample. It exists to
run their checkpoints faithfully; for new models ``TemporalScale`` is better.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.diffusion.embedding import sinusoidal
from tdquant.numerics.grid import Grid
from tdquant.scales.encodings import NOMINAL
from tdquant.scales.temporal import TemporalScale

HIDDEN, DEPTH, DROPOUT = 64, 4, 0.2
"""The published network: width, linear layers, and rate before the last one in training."""


class PublishedScale(TemporalScale):
    """The published s(t) over raw training indices.

    Arguments:
        start: Step at every timestep before training.
        time_range: First and last training index, over which freezing makes a table.
        features: Width of the embedding: the UNet's ``model_channels``.
    """

    kind = "published"
    calibrated = False

    def __init__(
        self,
        start: float = 1.0,
        time_range: tuple[float, float] = (0.0, NOMINAL),
        features: int = 64,
    ) -> None:
        super().__init__(start, time_range, features, HIDDEN, DEPTH, DROPOUT)

    def encode(self, timestep: Tensor) -> Tensor:
        """The UNet's embedding ``(B, d)`` of timesteps ``(B,)``."""
        return sinusoidal(timestep.to(self.time_range.device), self.features)

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        assert timestep is not None
        if timestep.ndim == 0 and x.shape[0] > 1:
            # As published samplers call it: a product over one row rounds otherwise.
            timestep = timestep.expand(x.shape[0])
        with torch.autocast(self.time_range.device.type, enabled=False):
            s = F.softplus(self.network(self.encode(timestep.reshape(-1))))
        return s.reshape(timestep.shape)

    def settings(self) -> dict[str, Any]:
        return {"features": self.features}

    @staticmethod
    def batched_steps(
        scales: Sequence[TemporalScale], timestep: Tensor
    ) -> dict[nn.Module, Tensor]:
        """Returns nothing: products batched over scales, and in float64, round differently."""
        return {}
