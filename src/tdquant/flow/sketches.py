r"""Sketches of tensors: enough to tell where two of one shape differ, in next to no memory.

    v_d[i] = sum over all j with j_d = i of x_j prod_{e != d} r_e[j_e]

with random vectors r, one for each dimension: v_d changes at i, almost surely, when x does there.
Of several draws of r one that changes suffices: a single number is within rounding of its earlier
self once in a thousand times, and a network has hundreds of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SHARE = 1e-3
"""Share of the largest change below which a change is rounding: other sums for other samples."""

_ROUNDING = 1e-5
"""The same, of the numbers themselves."""

DRAWS = 3


@dataclass(frozen=True)
class Sketch:
    """A tensor's shape, a sum for each index of each of its dimensions, and its level.

    Attributes:
        shape: The shape.
        sums: ``v_d`` of each dimension ``(n, DRAWS)``, on the CPU.
        level: Sum of the magnitudes.
        rows: Vectors of channels that differ: of a vector repeated for each frame or pixel, one.
            0 if all are zero.
    """

    shape: tuple[int, ...]
    sums: list[Tensor]
    level: float
    rows: int

    @classmethod
    def of(cls, x: Tensor, channels: int = -1) -> Sketch:
        """The sketch of a tensor that is not empty, with its channels along a dimension."""
        rng = torch.Generator().manual_seed(0)
        x = x.detach().float()
        draws = [
            [torch.randn(n, generator=rng, dtype=torch.float32).to(x.device) for n in x.shape]
            for _ in range(DRAWS)
        ]
        sums = [torch.stack([_sum(x, vectors, d) for vectors in draws], 1) for d in range(x.ndim)]
        rows = _distinct_rows(x, draws[0][channels], channels)
        return cls(tuple(x.shape), [v.cpu() for v in sums], float(x.abs().sum()), rows)


def _sum(x: Tensor, vectors: list[Tensor], d: int) -> Tensor:
    """The weighted sum for each index of dimension d."""
    for e in range(x.ndim - 1, d, -1):
        x = x @ vectors[e]
    for e in range(d):
        x = torch.tensordot(vectors[e], x, dims=1)
    return x


def _distinct_rows(x: Tensor, vector: Tensor, channels: int) -> int:
    """Vectors of channels in a tensor that differ, up to rounding."""
    values = (x.movedim(channels, -1) @ vector).flatten()
    level = values.abs().max()
    return len((values / level * 1e4).round().unique()) if level else 0


def changed(before: Sketch, after: Sketch) -> list[Tensor] | None:
    """Which indices of each dimension differ; None if the shapes do."""
    if before.shape != after.shape:
        return None
    found = []
    for a, b in zip(before.sums, after.sums, strict=True):
        difference = (a - b).abs().amax(1)
        least = max(_SHARE * float(difference.max()), _ROUNDING * before.level / len(a))
        found.append(difference > least)
    return found
