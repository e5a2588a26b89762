"""Studies: the list of claims at the top, and a section for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tdquant.lab.report.formats import (
    VERDICTS,
    StudyMatrix,
    StudyPlot,
    StudySamples,
    StudyTable,
)
from tdquant.lab.report.layers import explorer
from tdquant.lab.report.numerals import interval, numeral, resolution
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.plots import plot
from tdquant.lab.report.reading import Study
from tdquant.lab.report.tables import table
from tdquant.lab.report.templating import render

if TYPE_CHECKING:
    from markupsafe import Markup

_PLURALS = {
    "holds": "hold", "holds in part": "hold in part", "does not hold": "do not hold",
}  # fmt: skip


def anchor(index: int) -> str:
    """The id of a study's section."""
    return f"study-{index + 1}"


def claims(studies: Sequence[Study]) -> Markup:
    """Every study in a line or two, with a link to its section."""
    verdicts = [study.content.verdict for study in studies]
    counts = [(verdict, verdicts.count(verdict)) for verdict in VERDICTS]
    words = [f"{n} {v if n == 1 else _PLURALS.get(v, v)}" for v, n in counts if n]
    return render(
        "claims",
        total=f"{len(studies)} {'claim' if len(studies) == 1 else 'claims'}",
        words=", ".join(words),
        entries=[(anchor(i), study.content) for i, study in enumerate(studies)],
    )


def section(study: Study, name: str) -> Callable[[Pictures], Markup]:
    """One study: question, claim, what was measured, and everything that shows it.

    Arguments:
        study: The study.
        name: The id of the section.

    Returns:
        The section, as a function of what makes its pictures.
    """
    content = study.content
    facts = [("Question", content.question), ("The paper", content.claim),
             ("Measured", content.measured)]  # fmt: skip
    values = {
        "study": content,
        "anchor": name,
        "facts": [(key, text) for key, text in facts if text],
        "where": machine_words(content.machine or {}),
        "matrix": content.matrix and _matrix(content.matrix),
        "plots": [_plot(each) for each in content.plots or ()],
        "layers": [(each.title, explorer(each, f"{name}-layers-{i}"))
                   for i, each in enumerate(content.layers or ())],
        "tables": [_table(each) for each in content.tables or ()],
    }  # fmt: skip
    return lambda pictures: render(
        "study",
        samples=[_samples(study, each, pictures) for each in content.samples or ()],
        figures=[(each, pictures.figure(study.file(each.file))) for each in content.figures or ()],
        **values,
    )


def machine_words(machine: dict[str, Any]) -> str:
    """A machine in one line."""
    parts = [machine.get("device"), machine.get("processor")]
    for count, one in ((machine.get("cores"), "core"), (machine.get("threads"), "thread")):
        parts.append(f"{count} {one}{'' if count == 1 else 's'}" if count else None)
    parts.append(f"torch {machine['torch']}" if machine.get("torch") else None)
    return ", ".join(str(part) for part in parts if part)


def _matrix(content: StudyMatrix) -> Markup:
    """Verdicts by part and model, parts of one claim together."""
    groups: dict[str, list[tuple[Any, list[Any]]]] = {}
    for row in content.rows:
        cells: list[Any] = []
        for column in content.columns:
            cell = row.cells.get(column)
            if cell is None:
                cells.append("–" if column in row.cells else "not run")
                continue
            ends, digits = "", None
            if cell.low is not None and cell.high is not None:
                # One place more than elsewhere: an end may lie close to a bound.
                digits = (resolution(cell.low, cell.high) or 0) + 1
                ends = interval(cell.low, cell.high, digits)
            cells.append({"cell": cell, "value": numeral(cell.value, digits), "interval": ends})
        groups.setdefault(row.group, []).append((row, cells))
    return render("matrix", matrix=content, groups=groups)


def _table(content: StudyTable) -> Markup:
    group, note = content.group or (), content.note or ""
    return table(content.title, content.columns, content.rows, group=group, note=note)


def _plot(content: StudyPlot) -> Markup:
    x, y = content.x, content.y
    return plot(
        content.title,
        x.label,
        y.label,
        content.lines,
        x_words=x.words or (),
        x_log=bool(x.log),
        y_log=bool(y.log),
        points=bool(content.points),
        note=content.note or "",
        heading=3,
    )


def _samples(study: Study, content: StudySamples, pictures: Pictures) -> dict[str, Any]:
    """Rows of samples, one strip for each value that all rows have in common."""
    rows = []
    for row in content.rows:
        files = [row.files.get(str(value)) for value in content.values]
        strips = [file and pictures.strip(study.file(file), content.tile) for file in files]
        rows.append({"name": row.name, "strips": strips})
    words = [f"{content.axis}: {numeral(value)}" for value in content.values]
    return {"about": content, "words": words, "rows": rows}
