"""Steps over time that calibration found, from which scales start."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdquant.numerics.grid import Grid


@dataclass(frozen=True)
class Curves:
    """The wanted steps of L tensors at K times.

    Attributes:
        times: The training timesteps ``(K,)``, increasing.
        steps: Positive steps ``(L, K)``, equal at all times for scales that do not follow time.
        weights: How much each time matters to each tensor, ``(L, K)``.
        grids: The codes of each tensor, L.
        span: First and last time of the model.
        seed: Seed of all draws.
    """

    times: Tensor
    steps: Tensor
    weights: Tensor
    grids: list[Grid]
    span: tuple[float, float]
    seed: int
