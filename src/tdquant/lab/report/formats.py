"""Schemas of the files that a report reads."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from tdquant.files.documents import Document, Section
from tdquant.lab.evaluation.layers import FORMAT, VERSION
from tdquant.lab.report.lines import Line
from tdquant.lab.report.tables import Column

Verdict = Literal["holds", "holds in part", "does not hold", "not finished"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class Layer(Section):
    """A quantized layer; errors are shares of the squared values.

    Attributes:
        steps: Step size at each time; fewer where the layer was not called at every time, none
            where its input stays in float.
    """

    path: str
    type: str
    weight_bits: int | None = None
    input_bits: int | None = None
    scale: str
    steps: list[float]
    error: float | None = None
    error_static: float | None = None
    saved: float | None = None
    weight_error: float | None = None
    range: float | None = None
    correlation: float | None = None
    parameters: int | None = None


class Layers(Section):
    """The layers of one model, with their steps at the same times."""

    times: list[float]
    layers: list[Layer]

    @model_validator(mode="after")
    def _check_steps(self) -> Layers:
        for i, layer in enumerate(self.layers):
            if len(layer.steps) > len(self.times) or not all(step > 0 for step in layer.steps):
                raise PydanticCustomError(
                    "steps",
                    "has layers[{index}].steps that are not at most {most} positive numbers",
                    {"index": i, "most": len(self.times)},
                )
        return self


class LayersFile(Layers, Document):
    """``layers.json`` of an evaluated model."""

    FORMAT: ClassVar = FORMAT
    VERSION: ClassVar = VERSION


class StudyLayers(Layers):
    """Layers inside a study."""

    title: str


class StudyTable(Section):
    """A table of a study; rows that agree in the keys of ``group`` stand together."""

    title: str
    note: str | None = None
    group: list[str] | None = None
    columns: list[Column] = Field(min_length=1)
    rows: list[dict[str, Any]]


class StudyFigure(Section):
    """A picture; ``file`` is relative to the study's folder."""

    file: str
    title: str
    alt: str


class StudyAxis(Section):
    """An axis of a plot; with ``words``, its values 0, 1, ... stand for these."""

    label: str
    log: bool | None = None
    words: list[str] | None = None


class StudyPlot(Section):
    """A plot of lines, or of points above words."""

    title: str
    x: StudyAxis
    y: StudyAxis
    lines: list[Line]
    points: bool | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _check_words(self) -> StudyPlot:
        places = set(range(len(self.x.words or ())))
        for i, line in enumerate(self.lines if places else ()):
            if not set(line.x) <= places:
                raise PydanticCustomError(
                    "words", "has lines[{index}].x that is no place of a word", {"index": i}
                )
        return self


class SampleRow(Section):
    """Samples of one model: value of the axis as text -> file."""

    name: str
    files: dict[str, str]


class StudySamples(Section):
    """Strips of sample images, ``tile`` pixels each, for several values along an axis."""

    title: str
    axis: str
    values: list[str | int | float] = Field(min_length=1)
    rows: list[SampleRow]
    tile: PositiveInt
    note: str | None = None
    credit: str | None = None


class MatrixCell(Section):
    """A verdict on a part of a claim, and the comparison out of ``count`` that says most against
    it: its words, value and interval.
    """

    verdict: Literal["holds", "does not hold", "not decided"]
    what: str
    count: int = 1
    value: float
    low: float | None = None
    high: float | None = None


class MatrixRow(Section):
    """A part of a claim: column -> cell; None where it says nothing, missing where nothing was
    run. ``rule`` says when it holds.
    """

    group: str
    name: str
    rule: str
    cells: dict[str, MatrixCell | None]


class StudyMatrix(Section):
    """Parts of claims by model; rows of one ``group`` stand together."""

    title: str
    note: str | None = None
    columns: list[str] = Field(min_length=1)
    rows: list[MatrixRow]


class StudyFile(Document):
    """A study: a claim, what was measured, and everything that shows it."""

    FORMAT: ClassVar = "tdquant-study"
    VERSION: ClassVar = 1

    study: str
    title: str
    question: str
    claim: str | None = None
    measured: str
    verdict: Verdict
    position: float | None = None
    machine: dict[str, Any] | None = None
    seconds: float | None = None
    command: str | None = None
    matrix: StudyMatrix | None = None
    tables: list[StudyTable] | None = None
    figures: list[StudyFigure] | None = None
    plots: list[StudyPlot] | None = None
    samples: list[StudySamples] | None = None
    layers: list[StudyLayers] | None = None
