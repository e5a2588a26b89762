r"""An input-dynamic step: the extremes of each sample, or of each token, found at every call.

    s = max(max(x) / high, min(x) / low)

It needs no calibration and no timestep, and costs a reduction over the input of every layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale


class DynamicScale(Scale):
    """The step that just holds the extremes of each sample, shape ``(B,)``.

    Arguments:
        by_row: Of each row of the last dimension instead, which is a token of what a linear layer
            takes: ``(*, C)`` gets steps ``(*, 1)``.
    """

    kind = "dynamic"

    def __init__(self, by_row: bool = False) -> None:
        super().__init__()
        self.by_row = by_row

    def settings(self) -> dict[str, Any]:
        return {"by_row": self.by_row}

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        x = x.detach().float()
        if self.by_row:
            smallest, largest = x.aminmax(dim=-1, keepdim=True)
        else:
            smallest, largest = (x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)).aminmax(dim=1)
        step = largest / grid.high if grid.high > 0 else largest.new_zeros(largest.shape)
        if grid.low < 0:
            step = step.maximum(smallest / grid.low)
        return step.clamp(min=FLOOR)

    def extra_repr(self) -> str:
        return f"by_row={self.by_row}"
