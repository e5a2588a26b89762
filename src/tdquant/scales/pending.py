"""A scale that does not exist yet: the child of every activation quantizer between quantize and
calibrate.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdquant.errors import CalibrationError
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale

_SAID = (
    "the tensors are those of a calibrated model, and this one is not calibrated: call "
    "tdq.calibrate(model, batches) first, with the calls and the seed of that time"
)


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

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        _metadata, strict, *_names, errors = rest
        theirs = any(name.startswith(prefix) for name in state)
        if strict and theirs and _SAID not in errors:  # once for the whole model
            errors.append(_SAID)

    def extra_repr(self) -> str:
        return f"wanted={self.wanted!r}"
