"""The record of what calibration did beside scales: it stays with a model through copies, frozen
ones included, and is saved with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tdquant.calibration.report import ProtectedInput, RemedyTrial
from tdquant.support.tables import text_table

LASTING = ("bits", "rotation", "factors", "protection")
"""Remedies that stay when weights and scales change."""


@dataclass(frozen=True)
class RemedyRecord:
    """What remedies did to a model. ``str()`` gives a few lines.

    Attributes:
        basis: What whole models were compared by, as ``Calibration.basis``.
        trials: Remedies that were tried on the whole model, in order.
        protected: Inputs with more bits than the recipe has for them.
        layers: Path of a layer -> names of the remedies that it has.
        macs: Path of a layer -> its multiply-accumulates for one sample.
        size: The file of tensors, as a share of the float32 bytes.
        time: The time of a call, as a share of the float model's, by multiply-accumulates.
    """

    basis: str = ""
    trials: tuple[RemedyTrial, ...] = ()
    protected: tuple[ProtectedInput, ...] = ()
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    size: float = 1.0
    time: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary that ``from_dict`` reads back."""
        return {
            **asdict(self),
            "trials": [asdict(one) for one in self.trials],
            "protected": [asdict(one) for one in self.protected],
            "layers": {path: list(names) for path, names in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RemedyRecord:
        """The record that ``to_dict`` wrote; what this version does not know is left out."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["trials"] = tuple(_made(RemedyTrial, one) for one in data.get("trials", ()))
        known["protected"] = tuple(_made(ProtectedInput, one) for one in data.get("protected", ()))
        known["layers"] = {path: tuple(n) for path, n in data.get("layers", {}).items()}
        return cls(**known)

    def until(self, step: str) -> RemedyRecord:
        """The record of a model whose weights and scales another step is about to change.

        Arguments:
            step: Its name, such as ``"train"``.
        """
        trials = tuple(
            replace(one, kept=False, what=f"{one.what}, until {step}")
            if one.kept and one.name not in LASTING
            else one
            for one in self.trials
        )
        left = {p: tuple(n for n in names if n in LASTING) for p, names in self.layers.items()}
        return replace(
            self, trials=trials, layers={p: names for p, names in left.items() if names}
        )

    def __str__(self) -> str:
        costs = f"{100 * self.size:.1f} % of the float32 bytes"
        if self.macs:
            costs += f", {100 * self.time:.0f} % of the float time by multiply-accumulates"
        lines = [costs]
        if self.protected:
            saved = sum(one.saved for one in self.protected)
            cost = sum(one.cost for one in self.protected)
            lines.append(
                f"protected inputs: {len(self.protected)}, {100 * cost:.1f} % of the work, "
                f"{100 * saved:.0f} % of the error of all inputs"
            )
        if self.trials:
            lines.append(f"remedies, by the error of {self.basis}:")
            rows = [
                (
                    one.name,
                    "kept" if one.kept else "not kept",
                    f"{one.before:.3g} -> {one.after:.3g}",
                    one.what,
                )
                for one in self.trials
            ]
            lines += [f"  {line}" for line in text_table(rows).splitlines()]
        return "\n".join(lines)


def _made(kind: Any, data: Mapping[str, Any]) -> Any:
    """An entry of a record; JSON has no NaN."""
    found = {f.name: data[f.name] for f in fields(kind)}
    return kind(**{name: math.nan if v is None else v for name, v in found.items()})
