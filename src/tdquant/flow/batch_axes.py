"""Where the samples lie in what a layer takes: where a change of one sample reaches, the other is
not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdquant.flow.probes import SAMPLES
from tdquant.numerics.batch_axis import TOGETHER, BatchAxis


def find_batch_axis(
    first: list[Tensor] | None,
    second: list[Tensor] | None,
    time: list[Tensor] | None,
    routed: bool,
) -> BatchAxis:
    """Where samples lie in a tensor.

    Arguments:
        first: What changed along each dimension with the first sample; None where shapes differ.
        second: The same, of the second sample.
        time: The same, of the first sample's time.
        routed: Whether its rows were picked by what the model computed.
    """
    if first is None or second is None or time is None:
        return TOGETHER
    mine, others = first, second
    if not any_changed(mine):
        mine = time if any_changed(time) else [~axis for axis in second]  # of conditions alone
    found = _confined(mine, others, routed)
    if not found:  # what the second sample changes is shared
        found = _confined(mine, [~axis for axis in mine], routed)
    return found[0] if len(found) == 1 else TOGETHER


def _confined(mine: list[Tensor], others: list[Tensor], routed: bool) -> list[BatchAxis]:
    return [
        arrangement
        for axis, (a, b) in enumerate(zip(mine, others, strict=True))
        if a.any() and b.any() and not (a & b).any()
        for arrangement in _arrangements(axis, a, b, routed)
    ]


def any_changed(axes: list[Tensor]) -> bool:
    """Whether anything changed along any dimension."""
    return any(bool(axis.any()) for axis in axes)


def _arrangements(axis: int, a: Tensor, b: Tensor, routed: bool) -> list[BatchAxis]:
    """How two samples may lie along a dimension, if they reach ``a`` and ``b`` of it."""
    count, rest = divmod(len(a), SAMPLES)
    if rest or (routed and count > 1):
        return []
    index = torch.arange(len(a))
    found = []
    for interleaved in (False, True) if count > 1 else (False,):
        owner = index % SAMPLES if interleaved else index // count
        if not a[owner == 1].any() and not b[owner == 0].any():
            found.append(BatchAxis(axis, interleaved))
    return found
