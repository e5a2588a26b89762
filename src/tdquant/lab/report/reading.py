"""The inputs of a report: run folders, study files, folders of either. Plain JSON, looked through
before anything is shown, with every mistake in every file told at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.files.documents import check_version
from tdquant.files.shapes import mistakes, refuse
from tdquant.lab.evaluation.layers import FORMAT as LAYERS_FORMAT
from tdquant.lab.evaluation.record import PROGRESS, RECORD, Record
from tdquant.lab.report import formats

LAYERS = "layers.json"
STUDY_FORMAT, VERSION = "tdquant-study", 1


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        path: The file.
        content: What is in it, of the shape that the format says.
    """

    path: Path
    content: dict[str, Any]

    def file(self, name: str) -> Path:
        """A file that the study names, relative to its own folder."""
        return self.path.parent / name


@dataclass(frozen=True)
class Run:
    """The folder of an evaluated model.

    Attributes:
        path: The folder.
        record: Its record.
        layers: Content of ``layers.json``, if there is one.
    """

    path: Path
    record: Record
    layers: dict[str, Any] | None

    @property
    def pictures(self) -> list[Path]:
        """Its pictures in order, so that the same place is the same noise."""
        return sorted((self.path / "images").glob("*.png"))

    @property
    def grid(self) -> Path | None:
        """One picture of its first images: of images made elsewhere, all that is kept."""
        file = self.path / "grid.png"
        return file if file.is_file() else None


@dataclass(frozen=True)
class Unfinished:
    """The folder of an evaluation that still runs, or was stopped.

    Attributes:
        path: The folder.
        progress: Its ``stage``, what is ``done`` ``of`` how much, and when that was ``updated``.
    """

    path: Path
    progress: dict[str, Any]


@dataclass
class Inputs:
    """What was found.

    Attributes:
        studies: By their position; those of one in the order of the arguments, by name within a
            folder.
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
    for each in inputs:
        path = Path(each)
        readers = list(_readers(path, found))
        if not readers:
            what = "has no run and no study" if path.exists() else "there is no such file"
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
    position = study.content.get("position")
    return math.inf if position is None else position


def _readers(path: Path, found: Inputs, deeper: bool = True) -> list[Callable[[], None]]:
    """What reads each input that a path stands for."""
    if path.is_file() and path.name == RECORD:
        path = path.parent
    if path.is_file():
        return [lambda: found.studies.append(read_study(path))]
    if (path / RECORD).is_file():
        return [lambda: found.runs.append(read_run(path))]
    if (path / PROGRESS).is_file():
        return [lambda: found.unfinished.append(read_progress(path))]
    if not path.is_dir():
        return []
    studies = [each for each in sorted(path.glob("*.json")) if _is_study(each)]
    readers = [reader for each in studies for reader in _readers(each, found)]
    if deeper:
        for folder in sorted(each for each in path.iterdir() if each.is_dir()):
            readers += _readers(folder, found, deeper=False)
    return readers


def _is_study(path: Path) -> bool:
    """False only for JSON that is whole and of another format: a damaged file is told of."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return True
    return isinstance(content, dict) and content.get("format") == STUDY_FORMAT


def read_study(path: Path) -> Study:
    """A study file, with the pictures that it names in place.

    Raises:
        StorageError: It is damaged, of a newer version, or names a picture that is not there.
    """
    content = _read(path, STUDY_FORMAT, formats.STUDY)
    wrong = []
    if content["verdict"] not in formats.VERDICTS:
        wrong.append(f"verdict is none of {', '.join(formats.VERDICTS)}")
    names = [(f"figures[{i}]", f["file"]) for i, f in enumerate(content.get("figures") or [])]
    for i, sample in enumerate(content.get("samples") or []):
        for j, row in enumerate(sample["rows"]):
            names += [(f"samples[{i}].rows[{j}]", str(n)) for n in row["files"].values()]
        if sample["tile"] < 1:
            wrong.append(f"samples[{i}].tile is less than 1")
    folder = path.parent.resolve()
    for place, name in names:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            wrong.append(f"{place}: {name} lies outside the study's folder")
        elif not file.is_file():
            wrong.append(f"{place}: there is no {name}")
    for i, drawn in enumerate(content.get("plots") or []):
        for j, line in enumerate(drawn["lines"]):
            sizes = {len(line[key]) for key in ("x", "y", "low", "high") if line.get(key)}
            if len(sizes) > 1:
                wrong.append(f"plots[{i}].lines[{j}] has lists of different lengths")
            words = drawn["x"].get("words")
            if words and not set(line["x"]) <= set(range(len(words))):
                wrong.append(f"plots[{i}].lines[{j}] has an x that is no place of a word")
    for each in content.get("layers") or []:
        wrong += _ragged(each)
    refuse(wrong, "the file", str(path))
    return Study(path, content)


def read_run(folder: Path) -> Run:
    """The folder of an evaluated model.

    Raises:
        StorageError: The record or ``layers.json`` is damaged or of a newer version.
    """
    record = Record.read(folder / RECORD)
    file = folder / LAYERS
    layers = _read(file, LAYERS_FORMAT, formats.LAYERS) if file.is_file() else None
    if layers is not None:
        # A layer whose input stays in float has no steps.
        layers["layers"] = [layer for layer in layers["layers"] if layer["steps"]]
        refuse(_ragged(layers), "the file", str(file))
    if layers is not None and not layers["layers"]:
        layers = None
    return Run(folder, record, layers)


def read_progress(folder: Path) -> Unfinished:
    """An evaluation that is not finished. Its file may be caught half written: it says nothing
    then.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text())
    except (OSError, ValueError):
        progress = {}
    if mistakes(progress, formats.PROGRESS):
        progress = {"stage": "starting", "done": 0, "of": 0}
    return Unfinished(folder, progress)


def _read(path: Path, format: str, shape: dict[str, Any]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError("the file is damaged", where=str(path), why=str(error)) from error
    if not isinstance(content, dict) or content.get("format") != format:
        raise StorageError(f"the file is no {format}", where=str(path))
    check_version(content.get("version"), VERSION, str(path))
    refuse(mistakes(content, shape), "the file", str(path))
    return content


def _ragged(layers: dict[str, Any]) -> list[str]:
    """Layers whose steps are no steps, or more than there are times."""
    times = len(layers["times"])
    return [
        f"layers[{i}].steps is not at most {times} positive numbers"
        for i, layer in enumerate(layers["layers"])
        if len(layer["steps"]) > times or not all(step > 0 for step in layer["steps"])
    ]
