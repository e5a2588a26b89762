"""Where a weight's steps start: one for each channel or for the tensor, or groups of inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid
from tdquant.quantizers.groups import Groups, count_groups, most
from tdquant.quantizers.steps import largest_of_rows, mse_step, row_blocks

_SHRINKS = torch.linspace(1.05, 0.3, 16, dtype=torch.float32)
_TOPS = torch.linspace(1.1, 0.6, 9, dtype=torch.float32)
_ROUNDS = 2
"""Times that multipliers and the step are fitted to each other."""


def start_steps(
    weight: Tensor, grid: Grid, per_channel: bool, group: int = 0, where: str = ""
) -> tuple[Tensor, Groups | None]:
    """First steps of a weight, ``(C,)`` or ``()``, and multipliers of its groups, if it has more
    than one in a row.

    Arguments:
        weight: ``(C, *)``, output channels first.
        grid: Symmetric codes, of 2 to 6 bits for groups.
        per_channel: One step a channel, or one for all; groups are of channels.
        group: Entries of a group, or 0 for no groups.
        where: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    if per_channel and count_groups(weight.shape, group):
        return grouped_steps(weight, grid, group, where)
    return mse_step(weight, grid, per_channel, where), None


@torch.no_grad()
def grouped_steps(weight: Tensor, grid: Grid, size: int, where: str = "") -> tuple[Tensor, Groups]:
    """The steps ``(C,)`` and multipliers with a small squared error.

    The best step of each group, among shrunken maxima, is rounded to a multiple of each of a few
    ``s_c / M``; for the best of these, multipliers next to the found ones are tried, and s_c is
    fitted to the codes by least squares. Needs a few megabytes beside the weight, however large
    that is.

    Arguments:
        weight: ``(C, *)``, output channels first, with more than ``size`` entries in a row.
        grid: Symmetric codes of 2 to 6 bits.
        size: Entries of a group.
        where: Path of the layer, for the error.

    Raises:
        ConversionError: A weight is NaN or infinite, or all of them are zero.
    """
    rows = weight.detach().flatten(1)
    largest_of_rows(rows, where)
    found = [_search(rows[block].float(), grid, size) for block in row_blocks(rows)]
    steps, multipliers = (torch.cat(parts) for parts in zip(*found, strict=True))
    return steps, Groups(multipliers, size)


def _search(rows: Tensor, grid: Grid, size: int) -> tuple[Tensor, Tensor]:
    """Steps ``(C,)`` and multipliers ``(C, G)`` of a few rows ``(C, K)``."""
    values = F.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))
    buffer, high = torch.empty_like(values), most(grid)

    def error(step: Tensor) -> Tensor:
        """Squared errors ``(C, G)`` by steps ``(C, G)``."""
        step = step.clamp(min=FLOOR).unsqueeze(2)
        torch.div(values, step, out=buffer)
        buffer.round_().clamp_(grid.low, grid.high).mul_(step)
        return buffer.sub_(values).square_().sum(2)

    largest = values.abs().amax(2) / grid.high
    least, own = torch.full_like(largest, torch.inf), largest
    for shrink in _SHRINKS.tolist():
        found = error(largest * shrink)
        own = torch.where(found < least, largest * shrink, own)
        least = least.minimum(found)
    top = own.amax(1, keepdim=True)
    step, m = top.clamp(min=FLOOR), torch.full_like(own, high)
    errors = torch.full_like(own, torch.inf)
    for share in _TOPS.tolist():
        unit = (top * share / high).clamp(min=FLOOR)
        multiples = (own / unit).round_().clamp_(1, high)
        found = error(multiples * unit)
        better = found.sum(1, keepdim=True) < errors.sum(1, keepdim=True)
        step, m = torch.where(better, unit * high, step), torch.where(better, multiples, m)
        errors = torch.where(better, found, errors)
    for _ in range(_ROUNDS):
        middle = m
        for beside in (middle + 1, middle - 1):
            multiples = beside.clamp(1, high)
            found = error(multiples * (step / high))
            m, errors = torch.where(found < errors, multiples, m), errors.minimum(found)
        # The least-squares step of the codes that these give.
        torch.div(values, (m * (step / high)).unsqueeze(2), out=buffer)
        buffer.round_().clamp_(grid.low, grid.high).mul_(m.unsqueeze(2))
        norm = buffer.square().sum((1, 2)).clamp(min=1)
        fitted = (buffer.mul_(values).sum((1, 2)) / norm * high).clamp(min=FLOOR).unsqueeze(1)
        found = error(m * (fitted / high))
        better = found.sum(1, keepdim=True) < errors.sum(1, keepdim=True)
        step, errors = torch.where(better, fitted, step), torch.where(better, found, errors)
    return step.squeeze(1), m.to(torch.uint8)
