"""The roles of a model's layers, which a recipe treats differently: by the names of its family, or
by the data flow of a call, which ``calibrate`` follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from tdquant.families import Family, family_of
from tdquant.layers import QUANTIZED, QuantLayer
from tdquant.layers.base import INPUT
from tdquant.layers.structure import names_of
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.state import state_of
from tdquant.support.patterns import matching


@dataclass(frozen=True)
class Roles:
    """Layers that a recipe treats differently, by path.

    Attributes:
        first: Layers that take the sample.
        last: Layers that give the output.
        time_path: Layers that embed the timestep, or project the embedding.
        changed: Layers that data flow gives another role than names do -> both.
        why: Why roles are by name, or empty if they are by data flow.
        batch: Path of a layer or of another quantizer -> where samples lie in its input.
        constant: Layers whose input is the same in every call.
        left_out: Path of an activation quantizer whose layer became a float layer -> why.
    """

    first: frozenset[str]
    last: frozenset[str]
    time_path: frozenset[str]
    changed: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    batch: Mapping[str, BatchAxis] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary that ``from_dict`` reads back."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out |= {name: sorted(v) for name, v in out.items() if isinstance(v, frozenset)}
        out["batch"] = {path: [b.axis, b.interleaved] for path, b in self.batch.items()}
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Roles:
        """The roles written by ``to_dict``."""
        sets = ("first", "last", "time_path", "constant")
        batch = {path: BatchAxis(*place) for path, place in data["batch"].items()}
        return cls(**{**data, **{n: frozenset(data[n]) for n in sets}, "batch": batch})

    def role(self, path: str) -> str:
        """``"time path"``, ``"first"``, ``"last"`` or ``"inner"``."""
        if path in self.time_path:
            return "time path"
        return "first" if path in self.first else "last" if path in self.last else "inner"

    def __str__(self) -> str:
        if self.why:
            lines = [f"roles of layers by name: {self.why}"]
        elif self.changed:
            changed = [f"{path} is {what}" for path, what in self.changed.items()]
            lines = [f"roles of {len(changed)} layers by data flow, not by name: {_few(changed)}"]
        else:
            lines = ["roles of layers by data flow, as by name"]
        for why in dict.fromkeys(self.left_out.values()):
            names = [n.removesuffix(INPUT) for n, w in self.left_out.items() if w == why]
            lines.append(f"left in float, {why}: {_few(names)}")
        return "\n".join(lines)


def _few(names: list[str]) -> str:
    return "; ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def quantizable_layers(model: nn.Module, family: Family | None = None) -> dict[str, nn.Module]:
    """Layers of quantizable types by path, quantized or not, but those whose parent reads their
    weights.
    """
    family = family or family_of(model)
    return {
        path: module
        for path, module in model.named_modules()
        if path
        and (type(module) in QUANTIZED or isinstance(module, QuantLayer))
        and not matching(names_of(model, path), family.read_by_parent)
    }


def roles_of(model: nn.Module) -> Roles:
    """The roles of a model's layers: by data flow once it was calibrated, by name before."""
    known: Roles | None = state_of(model).roles
    return known or named_roles(model)


def named_roles(model: nn.Module) -> Roles:
    """Roles by the names of the model's family; the first and last layers by order where no name
    fits. A name that only a layer of another type has, such as a ConvTranspose2d, says that no
    quantizable layer is at that edge.
    """
    family = family_of(model)
    paths = list(quantizable_layers(model, family))
    everything = [
        path for path, m in model.named_modules() if getattr(m, "weight", None) is not None
    ]

    def named(patterns: tuple[str, ...], otherwise: list[str]) -> frozenset[str]:
        found = {path for path in everything if matching(names_of(model, path), patterns)}
        return frozenset(found & set(paths) if found else otherwise)

    return Roles(
        named(family.first, paths[:1]),
        named(family.last, paths[-1:]),
        frozenset(path for path in paths if matching(names_of(model, path), family.time_path)),
        why="the model was not calibrated",
    )
