"""The JSON files of a run: its record, written last, and its progress while there is none.

The record says what was judged, how, against what, and the metrics with their intervals; a folder
with a record is a finished run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, field_validator, with_config
from pydantic_core import CoreSchema
from typing_extensions import Required, TypedDict

from tdquant.errors import StorageError, TDQError
from tdquant.files.documents import Document, Gap, Section, checked, read_json
from tdquant.files.looking import exists, is_folder

RECORD, PROGRESS = "record.json", "progress.json"
_fields = with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))


@_fields
class _Trial(TypedDict):
    name: str
    kept: bool
    before: Gap
    after: Gap
    what: str


@_fields
class _Protected(TypedDict):
    path: str
    bits: int
    saved: Gap


@_fields
class _Remedies(TypedDict, total=False):
    basis: str
    trials: Required[list[_Trial]]
    protected: Required[list[_Protected]]
    size: Gap
    time: Gap


@_fields
class _Model(TypedDict, total=False):
    name: Required[str]
    bits: str | None
    scale: str | None
    remedies: _Remedies | None


@_fields
class _Scheduler(TypedDict, total=False):
    name: str | None


@_fields
class _Sampling(TypedDict, total=False):
    images: Required[int]
    seed: int | None
    steps: int | None
    size: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    scheduler: _Scheduler | None
    call: dict[str, Any] | None


@_fields
class _Reference(TypedDict, total=False):
    name: Required[str]
    images: int | None


@_fields
class _Metric(TypedDict, total=False):
    title: Required[str]
    value: Required[Gap]
    low: Gap
    high: Gap
    better: str | None
    unit: str | None
    network: str | None


@_fields
class _Cost(TypedDict, total=False):
    seconds: float | None
    sampling_seconds: float | None
    images_per_second: float | None
    megabytes: float | None


@_fields
class _Against(TypedDict, total=False):
    name: str | None
    bits: str | None


@_fields
class _Paired(TypedDict):
    against: _Against
    images: int
    metrics: dict[str, _Metric]


@_fields
class _Sqnr(TypedDict):
    times: list[float]
    decibels: list[Gap]


@dataclass(frozen=True)
class _Keys:
    """Validates a dictionary by a TypedDict; keys that this does not name stay in it."""

    schema: Any

    def __get_pydantic_core_schema__(
        self, _source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(self.schema)


class Record(Document):
    """One evaluated model. Its parts are dictionaries, which docs/evaluation.md lists.

    Attributes:
        tdquant: Version that wrote it.
        created: ISO time.
        model: What was judged: name, source, digest, recipe, bits, scale, history, remedies.
        sampling: How its images were made: images, seed, batch, steps, eta, scheduler, ...
        reference: The reference set, or None.
        network: The feature network: name, digest, title.
        metrics: Name -> title, value, low, high, images, better, unit.
        cost: Seconds in total and of sampling, whether the run was resumed, images a second,
            milliseconds a call, megabytes.
        machine: What it ran on.
        paired: Comparison with another model from the same noise, or None.
        sqnr: Times and decibels of the denoiser's output, or None.
        command: The command that made it.
        asked: Digest of the whole request, by which a finished run is recognised.
    """

    FORMAT: ClassVar[str] = "tdquant-record"
    VERSION: ClassVar[int] = 1

    tdquant: str
    created: str
    model: Annotated[dict[str, Any], _Keys(_Model)]
    sampling: Annotated[dict[str, Any], _Keys(_Sampling)]
    reference: Annotated[dict[str, Any] | None, _Keys(_Reference | None)] = None
    network: dict[str, Any]
    metrics: Annotated[dict[str, dict[str, Any]], _Keys(dict[str, _Metric])]
    cost: Annotated[dict[str, Any], _Keys(_Cost)]
    machine: dict[str, Any]
    paired: Annotated[dict[str, Any] | None, _Keys(_Paired | None)] = None
    sqnr: Annotated[dict[str, Any] | None, _Keys(_Sqnr | None)] = None
    command: str = ""
    asked: str = ""

    @field_validator("sqnr")
    @classmethod
    def _pairs(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and len(value["times"]) != len(value["decibels"]):
            raise ValueError("lists of different lengths")
        return value

    @classmethod
    def from_dict(
        cls, content: Any, what: str = "the record", where: str = "", fix: str = "evaluate again",
        error: type[TDQError] = StorageError,
    ) -> Record:  # fmt: skip
        """Checks what ``to_dict`` gave; see ``Document.from_dict``."""
        return super().from_dict(content, what, where, fix, error)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], what: str = "the record", fix: str = "evaluate again"
    ) -> Record:
        """Reads a record.

        Arguments:
            path: The file, or the folder of a run.
            what: Its name in errors.
            fix: What to do if it is damaged.

        Raises:
            StorageError: It is missing, damaged, foreign or newer, or the run is not finished.
        """
        file = Path(path)
        if is_folder(file):
            file = file / RECORD
        if not exists(file):
            raise _missing(file)
        return super().read(file, what, fix)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images as they were judged; early records lack it."""
        found = self.sampling.get("size")
        return (found[0], found[1]) if found else None

    @property
    def paired_metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics of ``paired``; empty if there was no comparison."""
        return self.paired["metrics"] if self.paired else {}


class SamplingCost(Section):
    """How long images took, kept over interruptions.

    Attributes:
        seconds: Seconds of sampling.
        made: Number of images that were made in them.
    """

    seconds: float = 0.0
    made: int = 0


class ProgressState(Document):
    """Content of ``progress.json``.

    Attributes:
        stage: What the run is doing.
        done: How much of it is done.
        of: Out of how much.
        updated: ISO time.
        facts: Cost of the images so far.
    """

    FORMAT: ClassVar[str] = "tdquant-progress"
    VERSION: ClassVar[int] = 1

    stage: str
    done: int
    of: int
    updated: str = ""
    facts: SamplingCost = SamplingCost()


def read_progress(folder: Path) -> ProgressState:
    """The progress of a run. Files of tdquant 0.1 have no format, so that none is checked.

    Raises:
        StorageError: There is none, or it is damaged.
    """
    file = folder / PROGRESS
    return checked(ProgressState, read_json(file, "progress"), "progress", str(file))


def newer_version(file: Path) -> int | None:
    """The version of a record that this tdquant cannot read; None of any other file."""
    try:
        content = read_json(file, "the record")
    except StorageError:
        return None
    if not isinstance(content, dict) or content.get("format") != Record.FORMAT:
        return None
    version = content.get("version")
    return version if type(version) is int and version > Record.VERSION else None


def _missing(file: Path) -> StorageError:
    try:
        state = read_progress(file.parent)
    except StorageError:
        return StorageError(
            "no record here", where=str(file), fix="a folder that tdquant evaluate wrote"
        )
    return StorageError(
        "the run is still being written, or was stopped",
        where=str(file.parent),
        why=f"{state.stage}: {state.done} of {state.of} at {state.updated}",
        fix="wait until it ends, or repeat its command: it continues where it stopped",
    )
