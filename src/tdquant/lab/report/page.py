"""The page: one file, under a content security policy that forbids it to load anything else."""

from __future__ import annotations

import base64
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from tdquant.files.places import check_writable_file
from tdquant.files.writing import replacing
from tdquant.lab.report import runs as run_parts
from tdquant.lab.report import studies as study_parts
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.reading import Inputs, read_inputs
from tdquant.lab.report.templating import render
from tdquant.support.machine import version

if TYPE_CHECKING:
    from markupsafe import Markup

LIMIT = 5_000_000
"""Bytes of a page; pictures are made smaller until it fits."""

SHRINKING = (1.0, 0.7, 0.5, 0.35, 0.25)


def report(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    title: str | None = None,
) -> Path:
    """Writes one HTML page about evaluated runs and studies, self-contained and without network.

    Arguments:
        inputs: Run folders of ``tdquant evaluate``, study files, or folders that hold some of
            these. Runs that are still being written are shown as such.
        out: The file.
        title: Its title.

    Returns:
        The file's path.

    Raises:
        StorageError: An input is missing, damaged or of a newer version; all are named. Or
            ``out`` cannot be written.
        MissingDependencyError: Jinja2, matplotlib or Pillow is not installed.
    """
    check_writable_file(out)
    found = read_inputs([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
    path, build = Path(out), page_of(found, title)
    for shrink in SHRINKING:
        page = build(Pictures(shrink)).encode(errors="replace")
        if len(page) <= LIMIT:
            break
    else:
        warnings.warn(f"{path} has {len(page) / 1e6:.1f} MB: fewer inputs make it open faster",
                      stacklevel=2)  # fmt: skip
    with replacing(path) as fresh:
        fresh.write_bytes(page)
    return path


def page_of(found: Inputs, title: str | None = None) -> Callable[[Pictures], Markup]:
    """The page, as a function of what makes its pictures: everything else is drawn once.

    Arguments:
        found: What to show.
        title: Title of the page; derived from the inputs if None.
    """
    parts: list[tuple[str, str, Callable[[Pictures], Markup]]] = []
    if found.studies:
        claims = study_parts.claims(found.studies)
        parts.append(("claims", "What was found", lambda pictures: claims))
    for i, study in enumerate(found.studies):
        name = study_parts.anchor(i)
        parts.append((name, study.content.title, study_parts.section(study, name)))
    if found.runs:
        parts.append(("runs", "Evaluated models", run_parts.section(found.runs)))
    if found.unfinished:
        progress = render("unfinished", runs=found.unfinished)
        parts.append(("progress", "In progress", lambda pictures: progress))
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    )
    values = {
        "title": title or _title(found), "summary": _summary(found), "version": version(),
        "style": style, "script": script, "policy": policy,
    }  # fmt: skip
    return lambda pictures: render(
        "page", sections=[(name, words, part(pictures)) for name, words, part in parts], **values
    )


def _asset(name: str) -> str:
    return (resources.files("tdquant.lab.report") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    """The source by which the policy allows an inlined file."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _title(found: Inputs) -> str:
    if found.studies:
        several = len(found.studies) > 1
        return "What temporal scales do" if several else found.studies[0].content.title
    names = {str(run.record.model.get("name")) for run in found.runs}
    return f"Evaluation of {names.pop()}" if len(names) == 1 else "Evaluated models"


def _summary(found: Inputs) -> list[str]:
    """When, what and where, in a line."""
    machines = [study.content.machine or {} for study in found.studies]
    machines += [dict(run.record.machine) for run in found.runs]
    # Threads stand where the numbers are: two numbers of them do not make two machines.
    words = [study_parts.machine_words({**machine, "threads": None}) for machine in machines]
    words = list(dict.fromkeys(filter(None, words)))
    counts = [(len(found.studies), "study", "studies"), (len(found.runs), "run", "runs"),
              (len(found.unfinished), "run in progress", "runs in progress")]  # fmt: skip
    now = datetime.now(timezone.utc)
    parts = [f"{now.day} {now:%B %Y, %H:%M} UTC"]
    parts += [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]
    if len(words) > 1:
        words = [f"{len(words)} machines, named where their numbers are"]
    return parts + words
