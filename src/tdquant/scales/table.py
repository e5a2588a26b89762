r"""A table of steps over time: learned directly, or the frozen form of every temporal scale.

The table holds one step s_k at each knot t_k. Between knots it is linear in log-scale,

    log s(t) = (1 - w) log s_k + w log s_{k+1},    w = (t - t_k) / (t_{k+1} - t_k)

exact on the knots, and constant outside them. A table of one knot is a frozen static scale.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316); the directly learned table is its ablation S1000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import CalibrationError
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale, floored, lsq_factor
from tdquant.scales.curves import Curves


def training_timesteps(low: float, high: float, limit: int = 1024) -> Tensor:
    """Knots over ``[low, high]``: every training index, or ``limit`` of a continuous range, even
    or, in a ``wide_range``, of equal ratios.

    A range between integers at least 99 apart is one of indices; sigmas end at 1 or 80.
    """
    if _of_indices(low, high):
        return torch.arange(int(low), int(high) + 1, dtype=torch.float32)
    if not wide_range(low, high):
        return torch.linspace(low, high, limit, dtype=torch.float32)
    knots = torch.linspace(math.log(low), math.log(high), limit, dtype=torch.float64).exp()
    knots = knots.float()
    knots[0], knots[-1] = low, high
    return knots


def wide_range(low: float, high: float) -> bool:
    """Whether continuous times span more than a factor of 100, as noise levels from 0.002 to 80
    do: steps follow their logarithm.
    """
    return 0 < 100 * low < high and not _of_indices(low, high)


def _of_indices(low: float, high: float) -> bool:
    return float(low).is_integer() and float(high).is_integer() and high - low >= 99


def interpolated(s0: Tensor, s1: Tensor, w: Tensor) -> Tensor:
    """``s0^(1 - w) s1^w``, float32. In float64, rounded at the end: in float32 the last bit of a
    power depends on how many are computed together, and activations near a tie would be rounded
    otherwise in a batch of mixed times than alone.
    """
    between = (s0.double() * (s1.double() / s0.double()) ** w.double()).float()
    # w == 0 gives s0 exactly; at w == 1 the product could be a rounding off s1.
    return torch.where(w == 1, s1, between)


def first_index(knots: Tensor) -> int | None:
    """The first of several knots ``(K,)`` that are consecutive integers, else None."""
    count, first = len(knots), float(knots[0])
    even = bool(
        (knots == torch.arange(count, device=knots.device, dtype=torch.float32) + first).all()
    )
    return int(first) if even and first.is_integer() and count > 1 else None


class TableScale(Scale):
    """Steps ``table`` (K,) at increasing times ``knots`` (K,).

    Arguments:
        knots: Times t_k, increasing.
        table: Positive steps s_k.
        learned: Whether training may change the steps, each by the samples at its time.

    Raises:
        CalibrationError: The two do not fit, times do not increase, or a step is not positive and
            finite.
    """

    kind = "table"
    knots: Tensor
    timed = True

    def __init__(self, knots: Tensor, table: Tensor, learned: bool = False) -> None:
        super().__init__()
        knots, table = knots.detach().float(), table.detach().float()
        if knots.ndim != 1 or knots.shape != table.shape or not len(knots):
            raise CalibrationError(
                f"{tuple(table.shape)} steps at {tuple(knots.shape)} times", where="TableScale"
            )
        if (knots.diff() <= 0).any():
            raise CalibrationError(
                "the times do not increase", where="TableScale", fix="sort them, each once"
            )
        if not (table.isfinite() & (table > 0)).all():
            raise CalibrationError("a step that is not positive and finite", where="TableScale")
        self.register_buffer("knots", knots.clone())
        self.table = nn.Parameter(table.clone(), requires_grad=learned)
        self.index_knots()

    @classmethod
    def from_curves(cls, curves: Curves, options: Mapping[str, Any]) -> list[TableScale]:
        """The curves themselves, learned from there on."""
        return [cls(curves.times, steps, learned=True) for steps in curves.steps]

    def training_times(self) -> Tensor:
        return self.knots

    def settings(self) -> dict[str, Any]:
        return {"knots": len(self.knots)}

    @classmethod
    def blank(cls, **settings: Any) -> TableScale:
        count = settings["knots"]
        return cls(
            torch.arange(count, dtype=torch.float32),
            torch.ones(count, dtype=torch.float32),
            learned=True,
        )

    def index_knots(self) -> None:
        """Records whether the knots are consecutive integers, which integer timesteps index."""
        self.first = first_index(self.knots)

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        last = len(self.knots) - 1
        table = floored(self.table, lsq_factor(x, grid) if self.table.requires_grad else 1.0)
        if last == 0:
            return table[0]
        assert timestep is not None
        # index_select on a flat index: indexing by a 0-dim tensor would synchronise with the
        # device.
        flat = timestep.to(self.knots.device).reshape(-1)
        if self.first is not None and not flat.is_floating_point():
            index = (flat - self.first).clamp(0, last)
            return table.index_select(0, index).reshape(timestep.shape)
        knots = self.knots
        t = flat.to(torch.float32).clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, t).clamp(1, last)
        t0, t1 = knots.index_select(0, right - 1), knots.index_select(0, right)
        s0, s1 = table.index_select(0, right - 1), table.index_select(0, right)
        return interpolated(s0, s1, (t - t0) / (t1 - t0)).reshape(timestep.shape)

    @staticmethod
    def batched_steps(scales: Sequence[TableScale], timestep: Tensor) -> dict[nn.Module, Tensor]:
        """Looks up frozen tables over the same knots together: those of one knot, and the others
        at integer timesteps that index them. Learned tables, and times between knots, are left to
        ``forward``.

        ``ScaleBank`` keeps copies, for models that only run; these tables are parameters, which
        may be loaded, moved and changed, and are read where they are.
        """
        alike: dict[tuple[int, int | None, torch.device], list[TableScale]] = {}
        for scale in scales:
            # Offloaded and sharded tables are whole in their own layer only.
            here = scale.table.device.type != "meta" and not hasattr(scale.table, "device_mesh")
            indexed = scale.first is not None and not timestep.is_floating_point()
            if here and not scale.table.requires_grad and (indexed or scale.static):
                key = len(scale.knots), scale.first, scale.table.device
                alike.setdefault(key, []).append(scale)
        steps: dict[nn.Module, Tensor] = {}
        for (count, first, device), group in alike.items():
            if first is None:
                found = torch.cat([scale.table for scale in group])
            else:
                index = (timestep.to(device).reshape(-1) - first).clamp(0, count - 1)
                rows = torch.stack([scale.table for scale in group])
                found = rows.index_select(1, index).reshape(len(group), *timestep.shape)
            steps |= zip(group, floored(found).unbind(), strict=True)
        return steps

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        knots = state.get(prefix + "knots")
        if knots is not None and knots.shape != self.knots.shape:
            self.knots = torch.zeros_like(knots, device=self.knots.device)
            self.table = nn.Parameter(torch.ones_like(self.knots), self.table.requires_grad)
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[arg-type]
        self.index_knots()

    @property
    def static(self) -> bool:
        """Whether the table has a single knot."""
        return len(self.knots) == 1

    def extra_repr(self) -> str:
        return f"knots={len(self.knots)}"
