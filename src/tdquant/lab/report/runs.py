"""Evaluated models: tables of those that may be compared, samples from the same noise, quality
against cost, the error over time, and layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tdquant.lab.evaluation.comparison import WARNING, incomparable
from tdquant.lab.evaluation.folder import SHOWN as IN_GRID
from tdquant.lab.report.labels import in_order, label_runs
from tdquant.lab.report.layers import brief, explorer, moves
from tdquant.lab.report.markup import Markup, join, tag
from tdquant.lab.report.numerals import is_number, numeral
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.plots import Line, plot
from tdquant.lab.report.reading import Run, Unfinished
from tdquant.lab.report.studies import caption, machine_words, slider
from tdquant.lab.report.tables import Column, table

SHOWN, COLUMNS = 24, 8

_DIGITS = {"sqnr": 1, "size": 2, "speed": 2}
"""Columns that stand last, in this order, and their places after the point."""


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in groups within which all may be compared."""
    found: list[list[Run]] = []
    for run in runs:
        for group in found:
            if not any(_grave(run, other) for other in group):
                group.append(run)
                break
        else:
            found.append([run])
    return found


def _grave(a: Run, b: Run) -> list[str]:
    return [r for r in incomparable(a.record, b.record) if not r.startswith(WARNING)]


def _mild(runs: Sequence[Run]) -> list[str]:
    """What asks for care among runs of one table, each reason once."""
    reasons = [r for a, b in combinations(runs, 2) for r in incomparable(a.record, b.record)]
    return sorted({r.removeprefix(WARNING) for r in reasons if r.startswith(WARNING)})


def section(runs: Sequence[Run], pictures: Pictures) -> Markup:
    """All evaluated models."""
    runs = in_order(runs)
    label = dict(zip((run.path for run in runs), label_runs(runs), strict=True))
    groups = comparable(runs)
    level = 4 if len(groups) > 1 else 3
    parts: list[Markup] = []
    for i, group in enumerate(groups):
        if len(groups) > 1:
            parts.append(tag("h3", f"Table {i + 1} of {len(groups)}: {_what(group[0])}"))
            parts.append(_apart(group, groups[:i] + groups[i + 1 :], label))
        parts.append(_comparison(group, label))
        drawn = [*_costs(group, level), _over_time(group, label, level)]
        if any(drawn):
            parts.append(tag("div", *drawn, class_="plots"))
    parts += _samples(runs, label, pictures)
    moving = next((run for run in runs if run.layers and moves(run.layers)), None)
    for i, run in enumerate(runs):
        if run.layers:
            summary = tag("summary", tag("h3", f"Layers of {label[run.path]}"),
                          tag("small", brief(run.layers)))  # fmt: skip
            parts.append(tag("details", summary, explorer(run.layers, f"run-{i + 1}"),
                             class_="chapter", open=run is moving))  # fmt: skip
    return tag(
        "section",
        tag("h2", "Evaluated models", id="runs"),
        tag("p", _machines(runs), class_="lede"),
        *parts,
        aria_labelledby="runs",
    )


def unfinished(runs: Sequence[Unfinished]) -> Markup:
    """Evaluations that still run."""
    entries = []
    for run in runs:
        done, of = run.progress["done"], run.progress["of"]
        words = f"{run.progress['stage']}: {numeral(done)} of {numeral(of)}"
        words = words if of else str(run.progress["stage"])
        if run.progress.get("updated"):
            words += f", last heard of {run.progress['updated']}"
        entries.append(
            tag("li", tag("b", run.path.name), tag("span", "in progress", class_="badge v3"),
                tag("progress", value=done, max=of, aria_label=f"Progress of {run.path.name}")
                if of else None, tag("p", words))
        )  # fmt: skip
    return tag(
        "section", tag("h2", "In progress", id="progress"),
        tag("p", "These evaluations are not finished, and none of their numbers is shown."),
        tag("ul", *entries, class_="unfinished"), aria_labelledby="progress",
    )  # fmt: skip


def _what(run: Run) -> str:
    """What the numbers of a table are measured by."""
    record = run.record
    words = [f"{numeral(record.sampling['images'])} images"]
    if record.reference:
        words.append(f"against {record.reference.get('name')}")
    words.append(f"features of {record.network.get('title')}")
    return ", ".join(words)


def _machines(runs: Sequence[Run]) -> str:
    found = list(dict.fromkeys(machine_words(dict(run.record.machine)) for run in runs))
    return f"Measured on {'; '.join(word for word in found if word)}." if any(found) else ""


def _apart(group: list[Run], others: list[list[Run]], label: dict[Any, str]) -> Markup:
    """Why a table stands by itself."""
    entries = []
    for other in others:
        pair = next((a, b, _grave(a, b)) for a in group for b in other if _grave(a, b))
        words = f"{label[pair[0].path]} and {label[pair[1].path]}: {'; '.join(pair[2])}"
        entries.append(tag("li", words))
    return tag("div", tag("p", "Not to be compared with the other tables:"), tag("ul", *entries),
               class_="caution")  # fmt: skip


def _comparison(group: list[Run], label: dict[Any, str]) -> Markup:
    columns = [Column("label", "Model")]
    rows = []
    for run in group:
        record = run.record
        row: dict[str, Any] = {"label": label[run.path], "bits": record.model.get("bits")}
        row["baseline"] = row["bits"] == "float"
        row["command"] = record.command
        measured = {**record.metrics}
        for key, value in (record.paired or {"metrics": {}})["metrics"].items():
            against = record.paired["against"].get("bits") or "reference"  # type: ignore[index]
            measured[f"paired-{key}"] = {**value, "title": f"{value['title']} to {against}"}
        decibels = [d for d in (record.sqnr or {"decibels": []})["decibels"] if is_number(d)]
        if decibels:
            mean = sum(decibels) / len(decibels)
            measured["sqnr"] = {"title": "SQNR", "value": mean, "better": "higher", "unit": "dB"}
        cost = record.cost
        measured["size"] = {"title": "Size", "value": cost.get("megabytes"), "unit": "MB"}
        measured["speed"] = {"title": "Speed", "value": cost.get("images_per_second"),
                             "unit": "images/s"}  # fmt: skip
        for key, value in measured.items():
            if value.get("value") is None and key in ("size", "speed"):
                continue
            if all(column.key != key for column in columns):
                columns.append(Column(key, value["title"], value.get("better") or "",
                                      _DIGITS.get(key), value.get("unit") or ""))  # fmt: skip
            row[key], row[f"{key}_low"] = value.get("value"), value.get("low")
            row[f"{key}_high"] = value.get("high")
        rows.append(row)
    last = list(_DIGITS)
    columns.sort(key=lambda column: last.index(column.key) + 1 if column.key in last else 0)
    by_bits = 1 < len({row["bits"] for row in rows}) < len(rows)
    mild = _mild(group)
    note = f"{_what(group[0])}. Small numbers are intervals at 95\u00a0%."
    if mild:
        note += f" Compare with care: {'; '.join(mild)}."
    return table("Quality and cost", columns, rows, group=["bits"] if by_bits else (), note=note)


def _costs(group: list[Run], level: int) -> list[Markup]:
    """The first metric that all have, against size and against speed."""
    if len(group) < 2:
        return []
    shared = [k for k in group[0].record.metrics if all(k in r.record.metrics for r in group)]
    if not shared:
        return []
    metric = shared[0]
    about = group[0].record.metrics[metric]
    direction = "lower" if about.get("better") == "lower" else "higher"
    found = []
    for key, name, unit in (
        ("megabytes", "size", "MB"),
        ("images_per_second", "speed", "images/s"),
    ):
        lines = []
        for kind in dict.fromkeys(str(r.record.model.get("scale") or "float") for r in group):
            those = [r for r in group if str(r.record.model.get("scale") or "float") == kind
                     and is_number(r.record.cost.get(key))]  # fmt: skip
            values = [r.record.metrics[metric] for r in those]
            if those:
                lines.append(
                    Line(kind, [r.record.cost[key] for r in those], [v["value"] for v in values],
                         [v.get("low") for v in values], [v.get("high") for v in values],
                         [_point(r, group) for r in those], joined=False)
                )  # fmt: skip
        if sum(len(line.x) for line in lines) > 1:
            found.append(
                plot(f"Quality against {name}", f"{name}, {unit}",
                     f"{about['title']} ({direction} is better)", lines, x_log=True,
                     y_log=_wide(lines), points=True, heading=level)
            )  # fmt: skip
    return found


def _wide(lines: list[Line]) -> bool:
    """Values that a linear axis would press together at its lower end."""
    values = [y for line in lines for y in line.y if is_number(y)]
    return min(values, default=0) > 0 and max(values) > 5 * min(values)  # type: ignore[operator, type-var]


def _point(run: Run, group: list[Run]) -> str:
    """Its bits, and its steps where those differ."""
    bits, steps = str(run.record.model.get("bits") or ""), run.record.sampling.get("steps")
    if bits == "float":
        bits = ""
    several = len({r.record.sampling.get("steps") for r in group}) > 1
    return f"{bits} {steps} steps".strip() if several else bits


def _over_time(group: list[Run], label: dict[Any, str], level: int) -> Markup | None:
    lines = [
        Line(label[run.path], run.record.sqnr["times"], run.record.sqnr["decibels"])
        for run in group
        if run.record.sqnr and run.record.sqnr["times"]
    ]
    if not lines:
        return None
    return plot("Error of the denoiser over time", "timestep", "SQNR in dB (higher is better)",
                lines, heading=level)  # fmt: skip


def _samples(runs: Sequence[Run], label: dict[Any, str], pictures: Pictures) -> list[Markup]:
    """A figure for each noise, with the samples that every model makes of it; then the grids of
    runs that have nothing else, such as those of given images.
    """
    noises: dict[tuple[Any, ...], list[Run]] = {}
    grids: list[Run] = []
    for run in runs:
        if run.pictures and not _is_given(run):
            noises.setdefault(_noise(run), []).append(run)
        elif run.grid:
            grids.append(run)
    found = []
    for noise, members in noises.items():
        tile = pictures.width(members[0].pictures[0])
        count = pictures.count(min(SHOWN, *(len(run.pictures) for run in members)), tile)
        words = [label[run.path] for run in members]
        sheets = []
        for i, (run, name) in enumerate(zip(members, words, strict=True)):
            alt = f"The first {count} samples of {name}"
            sheet = pictures.sheet(run.pictures[:count], COLUMNS, alt)
            sheets.append(tag("figure", sheet, tag("figcaption", name), data_value=i))
        title = "Samples from the same noise" if len(members) > 1 else f"Samples of {words[0]}"
        if len(noises) > 1 and len(members) > 1:
            title += f" (seed {noise[0]})"
        note = f"The first {count}, none chosen."
        if len(members) > 1:
            note = f"The same place is the same noise. {note}"
        found.append(
            tag("figure", tag("h3", title), _views(words) if len(members) > 1 else None,
                tag("div", *sheets, class_="grids"), caption(note, None), class_="samples compare")
        )  # fmt: skip
    return found + [_grid(run, run.grid, label[run.path], pictures) for run in grids if run.grid]


def _grid(run: Run, file: Path, name: str, pictures: Pictures) -> Markup:
    """The first pictures of a run that stands by itself."""
    images = max(1, run.record.sampling["images"])
    count = min(IN_GRID, images)
    what = "images" if _is_given(run) else "samples"
    sheet = pictures.grid(file, count, f"The first {count} {what} of {name}")
    note = f"The first {count} of {numeral(images)}, none chosen."
    return tag(
        "figure", tag("h3", f"{what.capitalize()} of {name}"),
        tag("div", tag("figure", sheet), class_="grids"), caption(note, None), class_="samples",
    )  # fmt: skip


def _is_given(run: Run) -> bool:
    """Whether the images were made elsewhere: what their noise was, nobody knows."""
    return run.record.sampling.get("seed") is None


def _noise(run: Run) -> tuple[Any, ...]:
    """What the noise of a run's pictures is a function of."""
    sampling = run.record.sampling
    return sampling["seed"], str(sampling.get("shape")), sampling.get("prompts")


def _views(words: list[str]) -> Markup:
    """The choice between all models beside each other and one at a time."""
    return join([tag("button", "One at a time", type="button", class_="view", aria_pressed="false",
                     hidden=True), slider("Model", words)])  # fmt: skip
