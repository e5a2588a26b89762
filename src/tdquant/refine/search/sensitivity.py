"""Layer sensitivity: the output error that quantizing each layer causes, by width and time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tdquant.errors import CalibrationError
from tdquant.files.documents import Document, Gap, Section
from tdquant.recipe import FLOAT, Recipe
from tdquant.scales import SCALES, DynamicScale
from tdquant.support.tables import text_table

KINDS = ("static", "temporal")
EDGE, TIME, ATTENTION = "edge", "time path", "attention"
_WORST = 12

Tables = dict[str, list[list[Gap]]]
"""path -> error by width and range of time."""


class LayerFacts(Section):
    """Size, bits and role of a layer.

    Attributes:
        weights: Number of its weights.
        macs: Multiply-accumulates for one sample.
        weight_bits: Bits of its weight in the measured model; 32 is float.
        activation_bits: Bits of its input.
        role: ``""``, or ``"edge"``, ``"time path"`` or ``"attention"``: layers that a recipe
            treats separately.
        columns: Weights of one output channel; 0 if that was not written down.
    """

    weights: int
    macs: int
    weight_bits: int
    activation_bits: int
    role: str
    columns: int = 0


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared output error, per element, that rounding one operand of one layer causes alone.
    Errors of different layers and operands add up: ``predict``. ``str()`` shows the worst layers.

    Attributes:
        bits: The W measured widths, increasing.
        times: Middle of each of K ranges of time.
        counts: Weight of each in means, ``(K,)``: the samples in it.
        layers: Facts of the layers, by path.
        weights: path -> error of the weight, ``(W, K)``.
        activations: kind of scale -> path -> error of the input, ``(W, K)``. A temporal scale may
            be flat, so that it is never worse than a static one.
        recipe: Recipe of the measured model.
        local: Why errors are relative ones of the operands, not of the output: the model has no
            backward pass on this device. Empty if they are of the output.
    """

    bits: tuple[int, ...]
    times: Tensor
    counts: Tensor
    layers: dict[str, LayerFacts]
    weights: dict[str, Tensor]
    activations: dict[str, dict[str, Tensor]]
    recipe: Recipe
    local: str = ""

    def over_time(self, path: str, operand: str, bits: int, kind: str = "temporal") -> Tensor:
        """The error in each range of time, ``(K,)``; 0 for an operand in float.

        Arguments:
            path: The layer.
            operand: ``"weights"`` or ``"activations"``.
            bits: One of the measured widths, or 32.
            kind: ``"static"`` or ``"temporal"``, of an activation.

        Raises:
            CalibrationError: Not measured.
        """
        if bits == FLOAT:
            return torch.zeros_like(self.times)
        table = self.weights if operand == "weights" else self.activations.get(kind, {})
        if path not in table or bits not in self.bits:
            raise CalibrationError(
                f"{operand} of {bits} bits were not measured",
                where=path,
                why=f"widths are {', '.join(map(str, self.bits))}, of {len(self.layers)} layers",
                fix="tdq.sensitivity(model, batches, bits=...) of this model",
            )
        return table[path][self.bits.index(bits)]

    def error(self, path: str, operand: str, bits: int, kind: str = "temporal") -> float:
        """The mean error over all samples. Arguments and errors are those of ``over_time``."""
        return self._mean(self.over_time(path, operand, bits, kind))

    def predict(
        self, weights: Mapping[str, int], activations: Mapping[str, tuple[int, str]]
    ) -> float:
        """The model's output error: the sum over the layers.

        Arguments:
            weights: path -> bits of the weight; of missing layers those of the measured model.
            activations: path -> bits of the input and kind of its scale; the same.
        """
        total = 0.0
        for path, layer in self.layers.items():
            total += self.error(path, "weights", weights.get(path, layer.weight_bits))
            bits, kind = activations.get(path, (layer.activation_bits, self.kind(path)))
            total += self.error(path, "activations", bits, kind)
        return total

    def kind(
        self, path: str, bits: int | None = None, margin: float = 0.1, scale: str | None = None
    ) -> str:
        """The kind of scale for a layer's input: ``scale``, or the recipe's, and where that is
        ``"auto"`` temporal if it lowers the error by more than the share ``margin``.
        """
        scale = scale or self.recipe.scale
        if scale != "auto":
            known = SCALES[scale]
            return "temporal" if known.timed or known is DynamicScale else "static"
        bits = self.layers[path].activation_bits if bits is None else bits
        static, temporal = (self.error(path, "activations", bits, k) for k in KINDS)
        return "temporal" if temporal < (1 - margin) * static else "static"

    def balanced(self) -> Sensitivity:
        """The same errors, with every range of time weighted by the inverse of its error.

        Often a few timesteps near the image have most of the squared error, and a search would
        spend its bits on them alone. With these weights all times have the same share of the
        measured model's error; means and predicted errors are then weighted, too.
        """
        total = torch.zeros_like(self.times)
        for path, layer in self.layers.items():
            total += self.over_time(path, "weights", layer.weight_bits)
            total += self.over_time(path, "activations", layer.activation_bits, self.kind(path))
        if not total.any():
            return self
        share = self.counts / total.clamp(min=float(total.max()) * 1e-6)
        return replace(self, counts=share)

    def __str__(self) -> str:
        rows: list[tuple[float, list[str]]] = []
        for path, layer in self.layers.items():
            weight = self.over_time(path, "weights", layer.weight_bits)
            bits = layer.activation_bits
            inputs = {kind: self.over_time(path, "activations", bits, kind) for kind in KINDS}
            both = weight + inputs[self.kind(path)]
            widths = f"{_width('W', layer.weight_bits)} {_width('A', bits)}"
            errors = [f"{self._mean(error):.2g}" for error in (weight, *inputs.values())]
            worst = f"t = {float(self.times[int(both.argmax())]):g}"
            rows.append((self._mean(both), [path, widths, *errors, worst]))
        rows.sort(key=lambda row: -row[0])
        everything = sum(total for total, _ in rows) or 1.0
        table = text_table(
            [[f"{total / everything:.1%}", *cells] for total, cells in rows[:_WORST]],
            ["share", "layer", "bits", "weights", *KINDS, "worst at"],
            right=[0],
        )
        what = f"relative error of operands ({self.local})" if self.local else "output error"
        return f"{what} {everything:.3g}, by layer (of {len(rows)}):\n{table}"

    def _mean(self, over_time: Tensor) -> float:
        return float((over_time * self.counts).sum() / self.counts.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file.

        Raises:
            StorageError: The file cannot be written.
        """
        _File(
            bits=list(self.bits),
            times=self.times.tolist(),
            counts=self.counts.tolist(),
            layers=self.layers,
            weights={name: table.tolist() for name, table in self.weights.items()},
            activations={
                kind: {name: table.tolist() for name, table in tables.items()}
                for kind, tables in self.activations.items()
            },
            recipe=self.recipe.to_dict(),
            local=self.local,
        ).write(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads a file that ``save`` wrote.

        Raises:
            StorageError: The file is missing, damaged, foreign or of a newer format.
            RecipeError: Its recipe is invalid.
        """
        file = _File.read(path, "the sensitivity", fix="a file that Sensitivity.save wrote")
        return cls(
            tuple(file.bits),
            torch.tensor(file.times, dtype=torch.float32),
            torch.tensor(file.counts),
            file.layers,
            _tensors(file.weights),
            {kind: _tensors(tables) for kind, tables in file.activations.items()},
            Recipe.from_dict(file.recipe),
            file.local,
        )

    def plot(self, path: str | os.PathLike[str], operand: str = "activations") -> None:
        """Draws a heat map of the error of every layer over time, as measured.

        Arguments:
            path: The image file, such as ``"sensitivity.png"``.
            operand: ``"weights"`` or ``"activations"``.

        Raises:
            CalibrationError: Nothing of that operand is quantized.
            MissingDependencyError: matplotlib is not installed.
        """
        from tdquant.refine.search.plotting import draw_heat_map

        rows = {}
        for name, layer in self.layers.items():
            bits = layer.weight_bits if operand == "weights" else layer.activation_bits
            if bits != FLOAT:
                rows[name] = self.over_time(name, operand, bits, self.kind(name))
        if not rows:
            raise CalibrationError(f"no {operand} are quantized", where="Sensitivity.plot")
        draw_heat_map(Path(path), rows, self.times.tolist(), f"output error of {operand}")


class _File(Document):
    """A saved sensitivity."""

    FORMAT: ClassVar = "tdquant-sensitivity"
    VERSION: ClassVar = 1

    bits: list[int]
    times: list[float]
    counts: list[float]
    layers: dict[str, LayerFacts]
    weights: Tables
    activations: dict[str, Tables]
    recipe: dict[str, Any]
    local: str = ""


def _tensors(tables: Tables) -> dict[str, Tensor]:
    return {
        name: torch.tensor(
            [[math.nan if e is None else e for e in row] for row in rows], dtype=torch.float32
        )
        for name, rows in tables.items()
    }


def _width(letter: str, bits: int) -> str:
    return f"{letter}-" if bits == FLOAT else f"{letter}{bits}"
