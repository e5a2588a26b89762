r"""An input-dynamic step: each sample's own extremes, looked up at every call.

    s = max(max(x) / high, min(x) / low)

It needs no calibration and no timestep, and costs a reduction over the input of every layer.
"""

from __future__ import annotations

from torch import Tensor

from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale


class DynamicScale(Scale):
    """The step that just holds the extremes of each sample, shape ``(B,)``."""

    kind = "dynamic"

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        flat = (x.detach().flatten(1) if x.ndim > 1 else x.detach().reshape(1, -1)).float()
        smallest, largest = flat.aminmax(dim=1)
        step = largest / grid.high if grid.high > 0 else largest.new_zeros(largest.shape)
        if grid.low < 0:
            step = step.maximum(smallest / grid.low)
        return step.clamp(min=FLOOR)
