"""The folder of a run: whose it is, whether it is whole, and how a run ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tdquant.diffusion.pictures import grid, save_png
from tdquant.errors import StorageError
from tdquant.lab.evaluation.progress import Progress, wait_for
from tdquant.lab.evaluation.reading import read_pictures
from tdquant.lab.evaluation.record import PROGRESS, RECORD, VERSION, Record, newer_version
from tdquant.lab.evaluation.references import ReferenceSet

PREVIOUS = "record.previous.json"
SHOWN = 36


def check_out(out: Path) -> None:
    """Refuses a folder with something else in it.

    Raises:
        StorageError: It is neither empty nor an earlier run, or its record is of a newer version.
    """
    version = newer_version(out / RECORD)
    if version is not None:
        raise StorageError(
            f"the record that is there is of version {version}, newer than {VERSION}",
            where=str(out / RECORD),
            why="its numbers cannot be read, and would have to make room",
            fix="update tdquant, or another folder for --out",
        )
    marks = (RECORD, PROGRESS, PREVIOUS, "images/samples.json", "features")
    if out.is_file() or (
        out.is_dir() and any(out.iterdir()) and not any((out / m).exists() for m in marks)
    ):
        raise StorageError(
            "there is something else already",
            where=str(out),
            fix="an empty folder, a new name, or the folder of an earlier evaluation",
        )


def under_way(out: Path) -> bool:
    """Whether images or features of the run are there already, whose making is not timed now."""
    return any(any(out.glob(made)) for made in ("images/*.png", "features/*.safetensors"))


def lacking(files: Sequence[Path]) -> int:
    """How many files are not there; one look at the folder, not one a file."""
    folder = files[0].parent
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return sum(file.name not in there for file in files)


def finished(
    out: Path, asked: str, find: Callable[[Record], ReferenceSet | None], state: Progress
) -> Record | None:
    """The record of a run that is whole and asked the same. Another one makes room.

    Arguments:
        out: The run.
        asked: Digest of what is asked for.
        find: The reference set of a record as it is now; it may have changed since.
        state: Keeps how long the images of another record took.
    """
    try:
        record = Record.read(out)
    except StorageError:
        record = None
    if record is not None and record.asked == asked:
        reference = find(record)
        if record.reference == (None if reference is None else reference.described):
            return record
    retire(out, state)
    return None


def retire(out: Path, state: Progress) -> None:
    """Moves an earlier record out of the way; how long how many images took stays known."""
    file = out / RECORD
    if not file.exists():
        return
    seconds, made = 0.0, 0
    with contextlib.suppress(StorageError):
        record = Record.read(file)
        seconds = record.cost.get("sampling_seconds") or 0.0
        made = record.sampling["images"] if seconds else 0
    state.facts.setdefault("seconds", seconds)
    state.facts.setdefault("made", made)
    file.replace(out / PREVIOUS)


def awaited(out: Path, asked: str) -> Record:
    """The record that the first process writes."""

    def missing() -> int:
        try:
            return int(Record.read(out).asked != asked)
        except StorageError:
            return 1

    def sign() -> str:
        try:
            return (out / PROGRESS).read_text()
        except OSError:
            return ""

    # Of the metrics nothing can be seen but that the first process notes how far it is.
    wait_for(missing, "records", out, sign=sign)
    return Record.read(out)


def close(
    record: Record, out: Path, files: Sequence[Path], state: Progress, resize: int | None = None
) -> Record:
    """Writes the grid and, last of all, the record."""
    shown = read_pictures(files[:SHOWN], resize)
    save_png(grid(shown), out / "grid.png")
    record.write(out / RECORD)
    state.end()
    return Record.read(out)
