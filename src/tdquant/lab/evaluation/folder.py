"""The folder of a run: what it holds, whether it is finished, and how a run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tdquant.diffusion.pictures import grid, save_png
from tdquant.errors import StorageError
from tdquant.files.looking import entries, exists, is_file, is_folder, matching
from tdquant.files.places import check_writable_folder
from tdquant.files.workspace import is_left_over
from tdquant.lab.evaluation.image_files import read_pictures
from tdquant.lab.evaluation.progress import Progress, wait_for
from tdquant.lab.evaluation.record import PROGRESS, RECORD, Record, SamplingCost, newer_version
from tdquant.lab.evaluation.references import Reference

PREVIOUS = "record.previous.json"
SHOWN = 36


def check_out(out: Path) -> None:
    """Refuses a folder that holds anything but an earlier run.

    Raises:
        StorageError: It is neither empty nor an earlier run, its record is of a newer version, or
            it cannot be written.
    """
    version = newer_version(out / RECORD)
    if version is not None:
        raise StorageError(
            f"the record that is there is of version {version}, newer than {Record.VERSION}",
            where=str(out / RECORD),
            why="it cannot be read, and would be replaced",
            fix="update tdquant, or another folder for --out",
        )
    marks = (RECORD, PROGRESS, PREVIOUS, "images/samples.json", "features")
    found = entries(out) if is_folder(out) else []
    foreign = not all(map(is_left_over, found)) and not any(exists(out / m) for m in marks)
    if is_file(out) or foreign:
        raise StorageError(
            "there is something else already",
            where=str(out),
            fix="an empty folder, a new name, or the folder of an earlier evaluation",
        )
    if not exists(out / RECORD):
        check_writable_folder(out)


def has_partial_results(out: Path) -> bool:
    """Whether images or features of an earlier process are there, which this one does not time."""
    made = matching(out / "images", "*.png") or matching(out / "features", "*.safetensors")
    return bool(made)


def count_missing(files: Sequence[Path]) -> int:
    """How many files of one folder do not exist; lists the folder once."""
    folder = files[0].parent
    there = {file.name for file in matching(folder, "*")}
    return sum(file.name not in there for file in files)


def finished(
    out: Path, asked: str, find: Callable[[Record], Reference | None], state: Progress
) -> Record | None:
    """The record of a finished run of the same request; any other record is retired.

    ``find`` gives the reference set of a record as it is now, since it may have changed.
    """
    with contextlib.suppress(StorageError):
        record = Record.read(out)
        if record.asked == asked:
            reference = find(record)
            if record.reference == (None if reference is None else reference.to_dict()):
                return record
    retire(out, state)
    return None


def retire(out: Path, state: Progress) -> None:
    """Moves an earlier record away; ``state`` keeps how long its images took."""
    file = out / RECORD
    if not exists(file):
        return
    with contextlib.suppress(StorageError):
        record = Record.read(file)
        seconds = record.cost.get("sampling_seconds")
        if seconds and not state.cost.made:
            state.cost = SamplingCost(seconds=seconds, made=record.sampling["images"])
    file.replace(out / PREVIOUS)


def wait_for_record(out: Path, asked: str) -> Record:
    """The record that the first process writes."""

    def missing() -> int:
        try:
            return int(Record.read(out).asked != asked)
        except StorageError:
            return 1

    def progress() -> str:
        try:
            return (out / PROGRESS).read_text()
        except OSError:
            return ""

    # While metrics are computed, the progress of the first process is all that changes.
    wait_for(missing, "records", out, sign_of_life=progress)
    return Record.read(out)


def close(
    record: Record, out: Path, files: Sequence[Path], state: Progress, resize: int | None = None
) -> Record:
    """Writes the grid of the first images and, last of all, the record."""
    save_png(grid(read_pictures(files[:SHOWN], resize)), out / "grid.png")
    record.write(out / RECORD)
    state.end()
    return Record.read(out)
