"""The report of a calibration: the scale of every activation, and the choices that were tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tdquant.families.roles import Roles
from tdquant.recipe import FLOAT


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
class ProtectedInput:
    """An input with more bits than the recipe has for it.

    Attributes:
        path: Its layer.
        bits: Its bits now; 32 is float.
        saved: Share of the output error of all inputs' rounding that this saves, by the judge.
        cost: Share of a call's multiply-accumulates, three times as much in float.
    """

    path: str
    bits: int
    saved: float
    cost: float


@dataclass(frozen=True)
class RemedyTrial:
    """What became of one remedy for the whole model.

    Attributes:
        name: Its name in ``Recipe.remedies``, or ``"bits"`` of weights that a budget of size gave,
            or ``"time path"``, of wider weights there.
        kept: Whether the model has it now.
        before: Error of the whole model without it, as ``Calibration.trials``.
        after: The error with it.
        what: Where it was applied, in a few words.
    """

    name: str
    kept: bool
    before: float
    after: float
    what: str

    def __str__(self) -> str:
        words = f"{self.what}: error {self.before:.3g} -> {self.after:.3g}"
        return words if self.kept else f"{words}, not kept"


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
        basis: What whole models were compared by: generated samples, trajectories found in the
            calls, or single calls, where errors cannot add up over the steps.
        protected: Inputs with more bits than the recipe has for them.
        remedies: Remedies that were tried on the whole model, in order.
    """

    layers: list[LayerChoice]
    trials: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    splits: list[SplitChoice] = field(default_factory=list)
    roles: Roles | None = None
    local: str = ""
    basis: str = ""
    protected: list[ProtectedInput] = field(default_factory=list)
    remedies: list[RemedyTrial] = field(default_factory=list)

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
        if self.trials and self.basis:
            lines.append(f"tried, by the error of {self.basis}, weights in float:")
        for name, error in self.trials.items():
            lines.append(f"  {'*' if name == self.chosen else ' '} {name}: error {error:.3g}")
        if self.protected:
            share = sum(one.cost for one in self.protected)
            lines.append(f"protected inputs, {share:.1%} of the work:")
        for one in self.protected:
            bits = "float" if one.bits == FLOAT else f"{one.bits} bits"
            lines.append(f"  {one.path}: {bits}, {one.saved:.0%} of the error of all inputs")
        if self.remedies:
            lines.append(f"remedies, by the error of {self.basis}:")
        lines += [f"  {'*' if one.kept else ' '} {one}" for one in self.remedies]
        return "\n".join(lines)
