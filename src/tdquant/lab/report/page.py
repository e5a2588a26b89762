"""The page: everything in one file, under a policy that forbids it to ask for anything else."""

from __future__ import annotations

import base64
import hashlib
import os
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

from tdquant.files.writing import replacing
from tdquant.lab.report import runs as run_parts
from tdquant.lab.report import studies as study_parts
from tdquant.lab.report.markup import Markup, join, tag
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.reading import Inputs, read_inputs
from tdquant.support.machine import version

LIMIT = 5_000_000
"""Bytes of a page; pictures are made smaller until it fits."""

SHRINKING = (1.0, 0.7, 0.5, 0.35, 0.25)

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath "
    "d='M1 13C6 13 9 11 15 2' fill='none' stroke='%232f6db3' stroke-width='2.5'/%3E%3C/svg%3E"
)


def report(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    title: str | None = None,
) -> Path:
    """Writes one HTML page about evaluated runs and studies.

    Arguments:
        inputs: Run folders of ``tdquant evaluate``, study files, or folders that hold some of
            these. Runs that are still being written are shown as such.
        out: The file.
        title: Its title.

    Returns:
        The file's path.

    Raises:
        StorageError: An input is missing, damaged or of a newer version; all are named.
        MissingDependencyError: Pillow is not installed, and there are pictures.
    """
    found = read_inputs([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
    path = Path(out)
    for shrink in SHRINKING:
        page = build_page(found, title, Pictures(shrink)).encode()
        if len(page) <= LIMIT:
            break
    else:
        warnings.warn(f"{path} has {len(page) / 1e6:.1f} MB: fewer inputs make it open faster",
                      stacklevel=2)  # fmt: skip
    with replacing(path) as fresh:
        fresh.write_bytes(page)
    return path


def build_page(found: Inputs, title: str | None, pictures: Pictures) -> str:
    """The page as text.

    Arguments:
        found: What to show.
        title: What it is called; told from the inputs if None.
        pictures: What makes its pictures.
    """
    title = title or _title(found)
    sections: list[Markup] = []
    entries: list[tuple[str, str]] = []
    if found.studies:
        sections.append(study_parts.claims(found.studies))
        entries.append(("claims", "What was found"))
        for i, study in enumerate(found.studies):
            sections.append(study_parts.section(study, i, pictures))
            entries.append((study_parts.anchor(i), study.content["title"]))
    if found.runs:
        sections.append(run_parts.section(found.runs, pictures))
        entries.append(("runs", "Evaluated models"))
    if found.unfinished:
        sections.append(run_parts.unfinished(found.unfinished))
        entries.append(("progress", "In progress"))
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name in entries]
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        tag("header", tag("p", "tdquant · temporal dynamic quantization", class_="kicker"),
            tag("h1", title), tag("p", _summary(found), class_="meta"),
            tag("button", "Dark theme", type="button", class_="theme", hidden=True)),
        tag("nav", tag("ol", *links), aria_label="Contents"),
        tag("main", *sections, id="content"),
        tag("footer", tag("p", f"Written by tdquant {version()}. This page holds all "
                          "that it shows and asks no other machine for anything.")),
        tag("p", "", class_="unseen", role="status", id="said"),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + tag("html", _head(title), body, lang="en") + "\n"


def _head(title: str) -> Markup:
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href=Markup(_ICON)),
        tag("style", Markup(style)),
        tag("script", Markup(script)),
    )


def _asset(name: str) -> str:
    return (resources.files("tdquant.lab.report") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    """What the policy knows an inlined file by."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _title(found: Inputs) -> str:
    if found.studies:
        return "What temporal scales do" if len(found.studies) > 1 else _first(found)
    names = {str(run.record.model.get("name")) for run in found.runs}
    return f"Evaluation of {names.pop()}" if len(names) == 1 else "Evaluated models"


def _first(found: Inputs) -> str:
    return str(found.studies[0].content["title"])


def _summary(found: Inputs) -> Markup:
    """When, what and where, in a line."""
    machines = [study.content.get("machine") or {} for study in found.studies]
    machines += [dict(run.record.machine) for run in found.runs]
    # Threads are told where the numbers are: two numbers of them do not make two machines.
    words = [study_parts.machine_words({**machine, "threads": None}) for machine in machines]
    words = list(dict.fromkeys(filter(None, words)))
    counts = [(len(found.studies), "study", "studies"), (len(found.runs), "run", "runs"),
              (len(found.unfinished), "run in progress", "runs in progress")]  # fmt: skip
    parts = [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]
    now = datetime.now(timezone.utc)
    parts.insert(0, f"{now.day} {now:%B %Y, %H:%M} UTC")
    if len(words) == 1:
        parts.append(words[0])
    elif words:
        parts.append(f"{len(words)} machines, named where their numbers are")
    return join([tag("span", part) for part in parts])
