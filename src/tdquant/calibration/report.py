"""The report of a calibration: the scale of every activation, and the choices that were tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tdquant.families.roles import Roles


@dataclass(frozen=True)
class LayerChoice:
    """The scale of one activation, and why it was chosen.

    Attributes:
        path: Its quantizer.
        kind: Kind of its scale.
        estimator: Estimator of the curve.
        error: Mean squared output error that it causes alone, by the judge, which weights times.
        static_error: That of its best static scale.
        spread: Largest over smallest step over time.
        fit_error: Largest ``|log s - log s*|`` of a scale over time; 0 of others.
    """

    path: str
    kind: str
    estimator: str
    error: float
    static_error: float
    spread: float
    fit_error: float


@dataclass(frozen=True)
class SplitChoice:
    """A layer that was split along the concatenation that is its input.

    Attributes:
        path: The layer.
        sizes: Channels of each part.
        error: Mean squared output error that the rounding of all parts causes, by the judge.
        whole_error: That of the best scale for the whole.
    """

    path: str
    sizes: tuple[int, ...]
    error: float
    whole_error: float


@dataclass(frozen=True)
class Calibration:
    """The report of a calibration. ``str()`` gives a few lines.

    Attributes:
        layers: One LayerChoice for each activation.
        trials: Geometric mean over samples of the squared error of the whole model's output, or of
            generated samples, by the choice tried.
        chosen: Name of the choice that was taken.
        splits: Layers that were split.
        roles: Roles of the model's layers, and those that were left in float.
        local: Why layers were judged by the error of their inputs, not of the model's output: it
            has no backward pass on this device. Empty if they were not.
    """

    layers: list[LayerChoice]
    trials: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    splits: list[SplitChoice] = field(default_factory=list)
    roles: Roles | None = None
    local: str = ""

    def kinds(self) -> dict[str, int]:
        """Kind of scale -> number of activations."""
        return dict(sorted(Counter(choice.kind for choice in self.layers).items()))

    def __str__(self) -> str:
        lines = ["calibrated " + ", ".join(f"{n} {kind}" for kind, n in self.kinds().items())]
        if self.splits:
            lines.append(f"split along their concatenations: {len(self.splits)} layers")
        if self.local:
            lines.append(f"layers judged by the error of their inputs: {self.local}")
        if self.roles is not None:
            lines.append(str(self.roles))
        for name, error in self.trials.items():
            lines.append(f"  {'*' if name == self.chosen else ' '} {name}: error {error:.3g}")
        return "\n".join(lines)
