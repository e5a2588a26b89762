"""Folders of a job: its output, and one beside it for what is not finished."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from tdquant.errors import StorageError
from tdquant.files.documents import Document
from tdquant.files.job_folder import JobFolder, open_job
from tdquant.files.looking import exists, files_below, is_file
from tdquant.files.places import check_folder, check_writable
from tdquant.lab.jobs.options import QuantizeOptions

MARK = "tdquant-job.json"
"""Marks a folder that a job wrote, and lists its files. Such a folder may be replaced."""


class Mark(Document):
    """The content of ``MARK``.

    Attributes:
        files: Paths of all files of the job, relative to the folder.
    """

    FORMAT: ClassVar[str] = "tdquant-job"
    VERSION: ClassVar[int] = 1
    files: list[str]


def write_mark(folder: Path) -> None:
    """Lists what is in a job's folder."""
    Mark(files=_files(folder)).write(folder / MARK)


def check_out(out: Path, model: str) -> None:
    """Checks that the output is new, or nothing but what an earlier job wrote.

    Raises:
        StorageError: It is something else, or the float model itself, or cannot be written.
    """
    target = check_folder(out, MARK)
    if exists(model) and Path(model).resolve() == target:
        raise StorageError(
            "the output is the float model itself", where=str(target), fix="another --out"
        )
    strange = sorted(set(_files(target)) - job_files(target))
    if strange:
        raise StorageError(
            f"{len(strange)} files are not of the job that wrote the folder",
            where=str(target),
            why=f"such as {', '.join(strange[:3])}",
            fix="move them away, or another --out",
        )
    check_writable(target)


def job_files(out: Path) -> set[str]:
    """Files of the job that wrote a folder, relative to it; none if no job did.

    Raises:
        StorageError: Its ``MARK`` is damaged.
    """
    if not exists(out / MARK):
        return set()
    return {MARK, *Mark.read(out / MARK, MARK, "another --out").files}


def work_folder(options: QuantizeOptions) -> AbstractContextManager[JobFolder]:
    """Opens the folder beside the output for what is not finished; the job removes it in the end.

    Raises:
        StorageError: There is one that no job made, or another process works there.
    """
    asked = {"model": options.model, "out": str(options.out)}
    work = options.out.with_name(f"{options.out.name}.work")
    return open_job(work, "quantization", asked, restart=True)


def _files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in files_below(folder) if is_file(f))
