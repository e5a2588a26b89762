"""``tdquant inspect``: what is in a file or folder, read without building a model or running a
pickle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

_STUDY = {"study": str, "title": str, "verdict": str, "measured": str, "question?": str,
          "runs?": list, "command?": str}  # fmt: skip
"""What is told of a study."""


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="what is in a saved model, a run, a study or a file of tensors",
        description="Prints what every layer of a saved model is: bits, zero point, size, and its "
        "scale over time as a line of bars, as wide as the terminal. Tells training runs, "
        "checkpoints, evaluations, studies and files of tensors too. Nothing that a pickle names "
        "is run.",
    )
    parser.add_argument(
        "model",
        type=Path,
        help="folder of tdq.save, save_pretrained, training or tdquant evaluate; or a file",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.storage import inspect_saved

    # What goes to a file or another program stays whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    text = _result(options.model) or inspect_saved(options.model, width)
    encoding = sys.stdout.encoding or "ascii"  # a terminal without the bars shows question marks
    print(text.encode(encoding, errors="replace").decode(encoding))


def _result(path: Path) -> str | None:
    """What an evaluation or a study came to; None of anything else."""
    from tdquant.lab.evaluation.record import PROGRESS, RECORD, Record
    from tdquant.lab.report.formats import StudyFile

    if path.name in (RECORD, PROGRESS) and path.is_file():
        path = path.parent
    if (path / RECORD).is_file():
        return _evaluation(path / RECORD)
    if (path / PROGRESS).is_file():
        return _unfinished(path)
    format = _format(path)
    if format == Record.FORMAT:
        return _evaluation(path)
    return _study(path) if format == StudyFile.FORMAT else None


def _format(file: Path) -> str | None:
    """The format that a file of JSON says it is of."""
    try:
        content = json.loads(file.read_text()) if file.suffix == ".json" else None
    except (OSError, ValueError):
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
    from tdquant.files.shapes import mistakes, refuse

    study = json.loads(file.read_text())
    fix = "run the study again: it makes what is missing"
    refuse(mistakes(study, _STUDY), "the study", str(file), fix)
    lines = [f"the study {study['study']}: {study['title']}"]
    lines += [f"{key}: {study[key]}" for key in ("question", "measured", "verdict")
              if study.get(key)]  # fmt: skip
    if study.get("runs"):
        lines.append(f"runs: {len(study['runs'])}")
    return "\n".join([*lines, *([study["command"]] if study.get("command") else [])])
