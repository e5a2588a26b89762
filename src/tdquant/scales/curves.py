"""Steps over time that calibration found, for a law of scales to start from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdquant.numerics.grid import Grid


@dataclass(frozen=True)
class Curves:
    """The wanted steps of L tensors at K times.

    Attributes:
        times: The training timesteps ``(K,)``, increasing.
        steps: Positive steps ``(L, K)``. For laws that do not follow time they are the same at
            all times.
        weights: How much each time matters to each tensor, ``(L, K)``.
        grids: The codes of each tensor, L.
        span: First and last time of the model.
        seed: Of all draws.
    """

    times: Tensor
    steps: Tensor
    weights: Tensor
    grids: list[Grid]
    span: tuple[float, float]
    seed: int
