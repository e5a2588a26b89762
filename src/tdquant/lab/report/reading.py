"""Reads the inputs of a report: run folders, study files, and folders that hold some of these.

All files are checked before anything is shown, and all mistakes are reported at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tdquant.errors import StorageError, raise_collected
from tdquant.files.documents import MOST_SHOWN, read_json
from tdquant.files.looking import entries, exists, is_file, is_folder, matching
from tdquant.lab.evaluation.record import (
    PROGRESS,
    RECORD,
    ProgressState,
    Record,
    read_progress,
)
from tdquant.lab.report.formats import Layers, LayersFile, StudyFile

LAYERS = "layers.json"


@dataclass(frozen=True)
class Study:
    """A study file and its content."""

    path: Path
    content: StudyFile

    def file(self, name: str) -> Path:
        """A file that the study names, relative to its own folder."""
        return self.path.parent / name


@dataclass(frozen=True)
class Run:
    """The folder of an evaluated model.

    Attributes:
        path: The folder.
        record: Its record.
        layers: Content of ``layers.json`` without layers that have no steps; None if nothing is
            left.
    """

    path: Path
    record: Record
    layers: Layers | None

    @property
    def pictures(self) -> list[Path]:
        """Its images in order: the same place is the same noise."""
        return matching(self.path / "images", "*.png")

    @property
    def grid(self) -> Path | None:
        """The overview of its first images: all that is kept of images made elsewhere."""
        file = self.path / "grid.png"
        return file if is_file(file) else None


@dataclass(frozen=True)
class Unfinished:
    """The folder of an evaluation that still runs, or was stopped."""

    path: Path
    progress: ProgressState


@dataclass
class Inputs:
    """What was found.

    Attributes:
        studies: By their position, then in the order of the arguments and by name within a folder.
        runs: In the order of the arguments, by name within a folder.
        unfinished: The same.
    """

    studies: list[Study] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)


def read_inputs(inputs: Sequence[str | os.PathLike[str]]) -> Inputs:
    """Reads everything.

    Arguments:
        inputs: Run folders, study files, or folders that hold some of these.

    Raises:
        StorageError: Something is missing, damaged, of a newer version or no input of a report;
            all such files are named.
    """
    found, wrong = Inputs(), []
    for path in map(Path, inputs):
        readers = list(_readers(path, found))
        if not readers:
            what = "has no run and no study" if exists(path) else "there is no such file"
            wrong.append(StorageError(what, where=str(path)))
        for read in readers:
            try:
                read()
            except StorageError as error:
                wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong or not inputs:
        listed = "\n".join(str(error) for error in wrong)
        raise StorageError(
            f"{len(wrong)} inputs cannot be shown:\n{listed}" if wrong else "nothing to report",
            fix="run folders of tdquant evaluate, study files, or folders of them",
        )
    found.studies.sort(key=_position)
    return found


def _position(study: Study) -> float:
    position = study.content.position
    return math.inf if position is None else position


def _readers(path: Path, found: Inputs, deeper: bool = True) -> Iterator[Callable[[], None]]:
    """A function for each input at a path, which reads it into ``found``."""
    if is_file(path) and path.name == RECORD:
        path = path.parent
    if is_file(path):
        yield lambda: found.studies.append(read_study(path))
    elif is_file(path / RECORD):
        yield lambda: found.runs.append(read_run(path))
    elif is_file(path / PROGRESS):
        yield lambda: found.unfinished.append(read_unfinished(path))
    elif is_folder(path):
        for file in filter(_may_be_study, matching(path, "*.json")):
            yield from _readers(file, found)
        for folder in sorted(each for each in entries(path) if is_folder(each) and deeper):
            yield from _readers(folder, found, deeper=False)


def _may_be_study(path: Path) -> bool:
    """False for intact JSON of another format only: a damaged file must be reported."""
    try:
        content = read_json(path, "the file")
    except StorageError:
        return True
    return isinstance(content, dict) and content.get("format") == StudyFile.FORMAT


def read_study(path: Path) -> Study:
    """Reads a study file and checks that the pictures that it names exist.

    Raises:
        StorageError: It is damaged, of a newer version, or names a picture that is missing or
            outside its folder.
    """
    content = StudyFile.read(path, "the file")
    names = [(f"figures[{i}]", f.file) for i, f in enumerate(content.figures or ())]
    for i, samples in enumerate(content.samples or ()):
        for j, row in enumerate(samples.rows):
            names += [(f"samples[{i}].rows[{j}]", name) for name in row.files.values()]
    folder, wrong = path.parent.resolve(), []
    for place, name in names:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            wrong.append(f"{place}: {name} lies outside the study's folder")
        elif not is_file(file):
            wrong.append(f"{place}: there is no {name}")
    raise_collected(StorageError, wrong, "the pictures", MOST_SHOWN, where=str(path))
    return Study(path, content)


def read_run(folder: Path) -> Run:
    """Reads the folder of an evaluated model.

    Raises:
        StorageError: The record or ``layers.json`` is damaged or of a newer version.
    """
    record = Record.read(folder / RECORD)
    file = folder / LAYERS
    if not is_file(file):
        return Run(folder, record, None)
    layers = LayersFile.read(file, "the file")
    kept = [layer for layer in layers.layers if layer.steps]
    return Run(folder, record, layers.model_copy(update={"layers": kept}) if kept else None)


def read_unfinished(folder: Path) -> Unfinished:
    """Reads how far an evaluation is; ``starting`` if its file is caught half written."""
    try:
        return Unfinished(folder, read_progress(folder))
    except StorageError:
        return Unfinished(folder, ProgressState(stage="starting", done=0, of=0))
