"""A scale that does not exist yet: the child of every activation quantizer between quantize and
calibrate.
"""

from __future__ import annotations

from torch import Tensor

from tdquant.errors import CalibrationError
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale


class PendingScale(Scale):
    """Raises when it is asked for a step.

    Arguments:
        wanted: The kind of scale that calibration puts in its place.
        layer: Path of the layer, for the error.
    """

    kind = "pending"
    calibrated = False

    def __init__(self, wanted: str = "auto", layer: str = "") -> None:
        super().__init__()
        self.wanted, self.layer = wanted, layer

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        raise CalibrationError(
            "the activation scale is not calibrated",
            where=self.layer,
            why=f"a scale of kind {self.wanted!r} starts from the activations that the layer sees",
            fix="tdq.calibrate(model, batches)",
        )

    def extra_repr(self) -> str:
        return f"wanted={self.wanted!r}"
