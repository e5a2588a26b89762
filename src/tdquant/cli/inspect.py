"""``tdquant inspect``: what is in a file or folder, read without building a model or running a
pickle.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command
from tdquant.files.looking import exists, is_file


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        help="what is in a saved model, a run, a study or a file of tensors",
        description="Prints what every layer of a saved model is: bits, zero point, size, and its "
        "scale over time as a line of bars, as wide as the terminal. Describes training runs, "
        "checkpoints, evaluations, studies, embedded models and files of tensors too. Nothing "
        "that a pickle names is run.",
    )
    parser.add_argument(
        "model",
        help="folder of tdq.save, save_pretrained, training or tdquant evaluate; a file; or an "
        "embedded model's name",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    # What goes to a file or another program stays whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    text = _result(Path(options.model)) or _model(options.model, width)
    encoding = sys.stdout.encoding or "ascii"  # a terminal without the bars shows question marks
    print(text.encode(encoding, errors="replace").decode(encoding))


def _model(source: str, width: int | None) -> str:
    from tdquant.errors import ModelError
    from tdquant.lab.opening import kind_of, open_model
    from tdquant.model_summary import summary
    from tdquant.storage import inspect_saved

    fix = "the folder of the model that it was exported from; or tdq.open_session(file).about"
    kind = kind_of(source, {"exported": fix})
    if kind == "embedded":
        return f"an embedded model, in float\n{summary(open_model(source).model.unet)}"
    if not exists(source):
        raise ModelError("a pipeline on the hub", where=source, fix="download it, then its folder")
    return inspect_saved(source, width)


def _result(path: Path) -> str | None:
    """What an evaluation or a study came to; None of anything else."""
    from tdquant.lab.evaluation.record import PROGRESS, RECORD, Record
    from tdquant.lab.report.formats import StudyFile

    if path.name in (RECORD, PROGRESS) and is_file(path):
        path = path.parent
    if is_file(path / RECORD):
        return _evaluation(path / RECORD)
    if is_file(path / PROGRESS):
        return _unfinished(path)
    format = _format(path)
    if format == Record.FORMAT:
        return _evaluation(path)
    return _study(path) if format == StudyFile.FORMAT else None


def _format(file: Path) -> str | None:
    """The format that a JSON file gives itself."""
    from tdquant.errors import StorageError
    from tdquant.files.documents import read_json

    if file.suffix != ".json":
        return None
    try:
        content = read_json(file, "the file")
    except StorageError:
        return None
    return content.get("format") if isinstance(content, dict) else None


def _evaluation(file: Path) -> str:
    from tdquant.lab.evaluation import Record, record_table

    record = Record.read(file)
    lines = [f"an evaluation of {record.created}, tdquant {record.tdquant}", record_table(record)]
    return "\n".join([*lines, *([f"  {record.command}"] if record.command else [])])


def _unfinished(folder: Path) -> str:
    from tdquant.lab.report.reading import read_unfinished

    progress = read_unfinished(folder).progress
    text = f"an evaluation that is still being written, or was stopped: {progress.stage}"
    if progress.of:
        text += f", {progress.done} of {progress.of}"
    return text + (f", at {progress.updated}" if progress.updated else "")


def _study(file: Path) -> str:
    from tdquant.files.documents import Section, checked, read_json

    class Study(Section):
        study: str
        title: str
        verdict: str
        measured: str
        question: str | None = None
        runs: list[Any] | None = None
        command: str | None = None

    fix = "run the study again: it makes what is missing"
    study = checked(Study, read_json(file, "the study"), "the study", str(file), fix)
    lines = [f"the study {study.study}: {study.title}"]
    facts = {"question": study.question, "measured": study.measured, "verdict": study.verdict}
    lines += [f"{name}: {fact}" for name, fact in facts.items() if fact]
    if study.runs:
        lines.append(f"runs: {len(study.runs)}")
    return "\n".join([*lines, *([study.command] if study.command else [])])
