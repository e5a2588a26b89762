"""Layer sensitivity: what quantizing each layer does to the model's output, by width and time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.errors import CalibrationError, StorageError
from tdquant.files.documents import check_version
from tdquant.files.writing import replacing
from tdquant.recipe import FLOAT, Recipe
from tdquant.scales import SCALES, DynamicScale

FORMAT, VERSION = "tdquant-sensitivity", 1
KINDS = ("static", "temporal")
EDGE, TIME, ATTENTION = "edge", "time path", "attention"
_WORST = 12


@dataclass(frozen=True)
class LayerFacts:
    """What a layer is.

    Attributes:
        weights: Number of its weights.
        macs: Multiply-accumulates for one sample.
        weight_bits: Bits of its weight in the model that was measured; 32 is float.
        activation_bits: Those of its input.
        role: ``""``, or ``"edge"``, ``"time path"`` or ``"attention"``: what a recipe sets apart.
    """

    weights: int
    macs: int
    weight_bits: int
    activation_bits: int
    role: str


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared output error, per element, that rounding one operand of one layer causes alone.

    Errors of different layers and operands add up: ``predict``. ``str()`` gives the worst layers.

    Attributes:
        bits: Widths that were measured, increasing, ``W`` of them.
        times: Middle of each of K ranges of time.
        counts: How much each counts in means, ``(K,)``: the samples in it.
        layers: What the layers are, by path.
        weights: path -> error of the weight, ``(W, K)``.
        activations: kind of scale -> path -> error of the input, ``(W, K)``. A temporal scale may
            be flat, so that it is never worse than a static one.
        recipe: The recipe of the model that was measured.
    """

    bits: tuple[int, ...]
    times: Tensor
    counts: Tensor
    layers: dict[str, LayerFacts]
    weights: dict[str, Tensor]
    activations: dict[str, dict[str, Tensor]]
    recipe: Recipe

    def over_time(self, path: str, operand: str, bits: int, kind: str = "temporal") -> Tensor:
        """The error in each range of time, ``(K,)``; none for an operand in float.

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
        """The error over all samples. Arguments and errors as of ``over_time``."""
        return self._mean(self.over_time(path, operand, bits, kind))

    def predict(
        self, weights: Mapping[str, int], activations: Mapping[str, tuple[int, str]]
    ) -> float:
        """The model's output error: the sum over the layers.

        Arguments:
            weights: path -> bits of the weight; what is missing is as it was measured.
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
            law = SCALES[scale]
            return "temporal" if law.timed or law is DynamicScale else "static"
        bits = self.layers[path].activation_bits if bits is None else bits
        static, temporal = (self.error(path, "activations", bits, k) for k in KINDS)
        return "temporal" if temporal < (1 - margin) * static else "static"

    def balanced(self) -> Sensitivity:
        """The same errors, with every range of time counting by the inverse of its error.

        Often a few timesteps near the image have most of the squared error, and a search would
        spend its bits on them alone. After this all times have the same share of the error of the
        model that was measured. Means, and so predicted errors, are then over these weights.
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
        rows = sorted((self._row(path) for path in self.layers), key=lambda row: -row.total)
        everything = sum(row.total for row in rows) or 1.0
        width = max([len(row.path) for row in rows[:_WORST]], default=5)
        lines = [
            f"output error {everything:.3g}, by layer (of {len(rows)}):",
            f"{'layer':<{width}}  {'bits':<8} share  weights   static    temporal  worst at",
        ]
        for row in rows[:_WORST]:
            errors = "  ".join(f"{error:<8.2g}" for error in row.errors)
            share = f"{row.total / everything:>5.1%}"
            lines.append(
                f"{row.path:<{width}}  {row.widths:<8} {share}  {errors}  t = {row.worst:g}"
            )
        return "\n".join(lines)

    def _row(self, path: str) -> _Row:
        layer, kind = self.layers[path], self.kind(path)
        weight = self.over_time(path, "weights", layer.weight_bits)
        inputs = {k: self.over_time(path, "activations", layer.activation_bits, k) for k in KINDS}
        both = weight + inputs[kind]
        widths = f"{_width('W', layer.weight_bits)} {_width('A', layer.activation_bits)}"
        errors = tuple(self._mean(e) for e in (weight, *inputs.values()))
        return _Row(path, widths, self._mean(both), errors, float(self.times[int(both.argmax())]))

    def _mean(self, over_time: Tensor) -> float:
        return float((over_time * self.counts).sum() / self.counts.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON."""

        def lists(tables: Mapping[str, Tensor]) -> dict[str, Any]:
            return {name: table.tolist() for name, table in tables.items()}

        content = {
            "format": FORMAT,
            "version": VERSION,
            "bits": list(self.bits),
            "times": self.times.tolist(),
            "counts": self.counts.tolist(),
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "weights": lists(self.weights),
            "activations": {kind: lists(tables) for kind, tables in self.activations.items()},
            "recipe": self.recipe.to_dict(),
        }
        with replacing(Path(path)) as fresh:
            fresh.write_text(json.dumps(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """What ``save`` wrote.

        Raises:
            StorageError: The file is missing, damaged, foreign or of a newer format.
        """
        try:
            content = json.loads(Path(path).read_text())
        except OSError as error:
            raise StorageError("no such file", where=str(path), why=str(error)) from error
        except ValueError as error:
            raise StorageError("not JSON", where=str(path), why=str(error)) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StorageError(
                "a foreign format", where=str(path), fix="a file that Sensitivity.save wrote"
            )
        check_version(content.get("version"), VERSION, str(path))

        def tensors(tables: Mapping[str, Any]) -> dict[str, Tensor]:
            return {name: torch.tensor(table) for name, table in tables.items()}

        try:
            return cls(
                tuple(content["bits"]),
                torch.tensor(content["times"]),
                torch.tensor(content["counts"]),
                {name: LayerFacts(**facts) for name, facts in content["layers"].items()},
                tensors(content["weights"]),
                {kind: tensors(tables) for kind, tables in content["activations"].items()},
                Recipe.from_dict(content["recipe"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError("damaged", where=str(path), why=repr(error)) from error

    def plot(self, path: str | os.PathLike[str], operand: str = "activations") -> None:
        """Draws a heat map of the error of every layer over time, as measured.

        Arguments:
            path: The picture, such as ``"sensitivity.png"``.
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


@dataclass(frozen=True)
class _Row:
    """A layer as it was measured: error of weight, static and temporal input."""

    path: str
    widths: str
    total: float
    errors: tuple[float, ...]
    worst: float


def _width(letter: str, bits: int) -> str:
    return f"{letter}-" if bits == FLOAT else f"{letter}{bits}"
