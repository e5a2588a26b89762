r"""All tables of a frozen model in one: a single lookup a call serves every layer.

    S[k, l] = s_l(t_k)        one row a knot, one column a scale

A lookup takes row k, or what lies between two rows, linear in log-scale as in ``TableScale``. It
runs before the model does, through ``batched_steps``; backends and exporters lower it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tdquant.clock import identity
from tdquant.numerics.grid import Grid
from tdquant.scales.base import KeepFloat32Mixin, Scale
from tdquant.scales.table import TableScale, interpolated


class ScaleBank(KeepFloat32Mixin):
    """``bank(t) -> (L,)`` for a timestep ``()``, or ``(L, B)`` for timesteps ``(B,)``.

    Arguments:
        scales: L tables over the same knots, or of one knot.
    """

    knots: Tensor
    steps: Tensor

    def __init__(self, scales: list[TableScale]) -> None:
        super().__init__()
        longest = max(scales, key=lambda scale: len(scale.knots))
        self.first = longest.first
        rows = len(longest.knots)
        nowhere, grid = torch.empty(0, dtype=torch.float32), Grid.signed(8)
        with torch.no_grad():
            # Each scale's own forward on its own knots, so that what it clamps is clamped here.
            columns = [s(s.knots, nowhere, grid).reshape(-1).expand(rows) for s in scales]
            self.register_buffer("knots", longest.knots.clone())
            self.register_buffer("steps", torch.stack(columns, dim=1).contiguous())

    def forward(self, timestep: Tensor) -> Tensor:
        found = rows_at(timestep, self.knots, self.first, self.steps, interpolated)
        return found.reshape(-1) if timestep.ndim == 0 else found.t()

    def extra_repr(self) -> str:
        return f"knots={len(self.knots)}, scales={self.steps.shape[1]}"


def rows_at(
    timestep: Tensor,
    knots: Tensor,
    first: int | None,
    rows: Tensor,
    between: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The rows of a table at times ``()`` or ``(B,)``, ``(1, L)`` or ``(B, L)``, in operations
    that every exporter knows.

    Arguments:
        timestep: The times.
        knots: Times of the rows ``(K,)``, increasing.
        first: The first of knots that are consecutive integers, else None.
        rows: ``(K, L)``.
        between: ``(row, next row, share of the next)`` -> what lies between the two.
    """
    last = len(knots) - 1
    flat = timestep.to(knots.device).reshape(-1)
    if last == 0:
        return rows.expand(flat.shape[0], -1)
    if first is not None and not flat.is_floating_point():
        # index_select on a flat index: indexing by a 0-dim tensor would synchronise with the
        # device.
        return rows.index_select(0, (flat - first).clamp(0, last))
    t = flat.to(torch.float32).clamp(knots[0], knots[-1])
    if first is not None:
        # Through whole numbers: engines that compute in bfloat16 know none beyond 256.
        right = (t.ceil().long() - first).clamp(1, last)
        w = t - (right + (first - 1))
    else:
        # searchsorted, in operations that every exporter knows.
        right = (knots < t[:, None]).sum(1).clamp(1, last)
        t0, t1 = knots.index_select(0, right - 1), knots.index_select(0, right)
        w = torch.where(t1 > t0, (t - t0) / (t1 - t0), 1.0)
    s0, s1 = rows.index_select(0, right - 1), rows.index_select(0, right)
    return between(s0, s1, w[:, None])


class BankedScale(Scale):
    """Column ``column`` of a bank that other scales share.

    Arguments:
        bank: The bank.
        column: The column.
        static: Whether it has one step, which is then ``()`` at timesteps ``(B,)`` too.
    """

    timed = True

    def __init__(self, bank: ScaleBank, column: int, static: bool = False) -> None:
        super().__init__()
        self.bank = bank
        self.column, self.static = column, static

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        assert timestep is not None
        return self.pick(self.bank(timestep))

    def pick(self, steps: Tensor | Sequence[Tensor]) -> Tensor:
        """The step ``()`` or ``(B,)`` among those that the bank gave."""
        found = steps[self.column]
        return found[:1].reshape(()) if self.static and found.ndim and found.shape[0] else found

    @staticmethod
    def batched_steps(scales: list[BankedScale], timestep: Tensor) -> dict[Scale, Tensor]:
        """Looks up each bank once for all its scales."""
        rows: dict[Any, tuple[Tensor, ...]] = {}
        for scale in scales:
            if identity(scale.bank) not in rows:
                rows[identity(scale.bank)] = scale.bank(timestep).unbind(0)
        return {scale: scale.pick(rows[identity(scale.bank)]) for scale in scales}


class _Holder(Protocol):
    scale: Any


def bank_tables(holders: Iterable[_Holder]) -> None:
    """Replaces the tables of quantizers, in place, by columns of as few banks as their knots
    allow; other scales stay.
    """
    tables = [h for h in holders if isinstance(h.scale, TableScale)]
    timed = [h for h in tables if not h.scale.static]
    groups: dict[tuple[float, ...], list[_Holder]] = {}
    for holder in timed:
        groups.setdefault(tuple(holder.scale.knots.tolist()), []).append(holder)
    static = [h for h in tables if h.scale.static]
    if static:
        groups.setdefault(next(iter(groups), (0.0,)), []).extend(static)
    for group in groups.values():
        columns = {scale: i for i, scale in enumerate(dict.fromkeys(h.scale for h in group))}
        bank = ScaleBank(list(columns))
        for holder in group:
            holder.scale = BankedScale(bank, columns[holder.scale], holder.scale.static)
