"""Steps of least squared error: one for each channel of a weight, or one for all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from tdquant.errors import ConversionError
from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid

_SHRINKS = torch.linspace(1.0, 0.3, 29, dtype=torch.float32)
_BLOCK = 1 << 17
"""Weights that a thread searches at once: they and a copy fit its second-level cache."""


@torch.no_grad()
def mse_step(weight: Tensor, grid: Grid, per_channel: bool, where: str = "") -> Tensor:
    """The step with the least squared error among shrunken maxima, ``(C,)`` or ``()``.

    Needs a few megabytes beside the weight, however large that is.

    Arguments:
        weight: ``(C, *)``, output channels first.
        grid: Symmetric codes.
        per_channel: One step a channel, or one for all.
        where: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    weight = weight.detach()
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    largest = largest_of_rows(rows, where)
    step = torch.cat(
        [
            _best_shrink(rows[block].float(), largest[block].float(), grid)
            for block in row_blocks(rows)
        ]
    )
    return step if per_channel else step.squeeze(0)


def largest_of_rows(rows: Tensor, where: str = "") -> Tensor:
    """The largest magnitude of each row, ``(C,)``.

    Raises:
        ConversionError: A number is NaN or infinite, or all of them are zero.
    """
    blocks = row_blocks(rows)
    largest = torch.zeros(0, dtype=torch.float32)
    if rows.numel():
        largest = torch.cat([rows[block].abs().amax(dim=1) for block in blocks])
    # NaN is the largest of its row, and infinity too.
    if not largest.isfinite().all():
        odd = sum(int((~rows[block].isfinite()).sum()) for block in blocks)
        raise ConversionError(
            f"{odd} weights are NaN or infinite",
            where=where,
            fix="repair the checkpoint, or leave the layer in float: Recipe(exclude=...)",
        )
    if not largest.any():
        raise ConversionError(
            "all weights are zero",
            where=where,
            why="a scale cannot start from them, and the layer does nothing",
            fix="train the model first, or leave the layer in float: Recipe(exclude=...)",
        )
    return largest


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices of the rows ``(C, N)`` of a size to work on at once: in the cache on the CPU, all of
    them elsewhere. Each has a multiple of 8 rows, but for the last.
    """
    count = max(len(rows), 1)
    if rows.device.type == "cpu":
        wanted = _BLOCK * torch.get_num_threads() // max(rows.shape[1], 1)
        count = min(count, max(wanted // 8 * 8, 8))
    return [slice(start, start + count) for start in range(0, len(rows), count)]


def _best_shrink(rows: Tensor, largest: Tensor, grid: Grid) -> Tensor:
    """The best step ``(C,)`` of rows ``(C, N)`` with maxima ``(C,)``, in one buffer."""
    largest = largest[:, None] / grid.high
    best, step = torch.full_like(largest, torch.inf), largest.clone()
    buffer = torch.empty_like(rows)
    for shrink in _SHRINKS.tolist():
        s = (largest * shrink).clamp(min=FLOOR)
        torch.div(rows, s, out=buffer)
        buffer.round_().clamp_(grid.low, grid.high).mul_(s)
        error = buffer.sub_(rows).square_().sum(1, keepdim=True)
        step = torch.where(error < best, s, step)
        best = best.minimum(error)
    return step.clamp(min=FLOOR).squeeze(1)
