"""What calibration did: what every activation got, and what was tried."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerChoice:
    """What one activation got, and why.

    Attributes:
        path: Its quantizer.
        kind: Kind of its scale.
        estimator: Where the curve comes from.
        error: Mean squared output error that it causes alone, by the judge, which weighs times.
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
    """A layer that was split along the concatenation that it takes.

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
    """What calibration did. ``str()`` gives a few lines.

    Attributes:
        layers: One LayerChoice for each activation.
        trials: Geometric mean over samples of the squared error of the whole model's output, or of
            generated samples, by the choice tried.
        chosen: The name of the one that was taken.
        splits: Layers that were split.
    """

    layers: list[LayerChoice]
    trials: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    splits: list[SplitChoice] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {
            k: sum(c.kind == k for c in self.layers) for k in sorted({c.kind for c in self.layers})
        }
        lines = ["calibrated " + ", ".join(f"{n} {k}" for k, n in kinds.items())]
        if self.splits:
            lines.append(f"split along their concatenations: {len(self.splits)} layers")
        lines += [
            f"  {'*' if name == self.chosen else ' '} {name}: error {error:.3g}"
            for name, error in self.trials.items()
        ]
        return "\n".join(lines)
