"""Evaluated models: tables of those that may be compared, samples from the same noise, quality
against cost, the error over time, and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdquant.lab.evaluation.comparison import WARNING, incomparable
from tdquant.lab.evaluation.folder import SHOWN as IN_GRID
from tdquant.lab.report import remedies
from tdquant.lab.report.labels import in_order, label_runs
from tdquant.lab.report.layers import brief, explorer, moves
from tdquant.lab.report.lines import Line
from tdquant.lab.report.numerals import is_number, numeral
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.plots import plot
from tdquant.lab.report.reading import Run
from tdquant.lab.report.studies import machine_words
from tdquant.lab.report.tables import Column, table
from tdquant.lab.report.templating import render

if TYPE_CHECKING:
    from markupsafe import Markup

SHOWN, COLUMNS = 24, 8

_DIGITS = {"sqnr": 1, "size": 2, "speed": 2}
"""The last columns, in this order, and their places after the point."""

Labels = dict[Path, str]
"""What each run is called, by its folder."""


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs within which all may be compared."""
    found: list[list[Run]] = []
    for run in runs:
        for group in found:
            if not any(_blocking_differences(run, other) for other in group):
                group.append(run)
                break
        else:
            found.append([run])
    return found


def _blocking_differences(a: Run, b: Run) -> list[str]:
    """Why two runs must not stand in one table."""
    return [r for r in incomparable(a.record, b.record) if not r.startswith(WARNING)]


def _minor_differences(runs: Sequence[Run]) -> list[str]:
    """What asks for care among runs of one table, each reason once."""
    reasons = [r for a, b in combinations(runs, 2) for r in incomparable(a.record, b.record)]
    return sorted({r.removeprefix(WARNING) for r in reasons if r.startswith(WARNING)})


def section(runs: Sequence[Run]) -> Callable[[Pictures], Markup]:
    """All evaluated models, as a function of what makes their pictures."""
    runs = in_order(runs)
    labels = dict(zip((run.path for run in runs), label_runs(runs), strict=True))
    groups = comparable(runs)
    level = 4 if len(groups) > 1 else 3
    machines = dict.fromkeys(machine_words(dict(run.record.machine)) for run in runs)
    moving = next((run for run in runs if run.layers and moves(run.layers)), None)
    values = {
        "machines": "; ".join(word for word in machines if word),
        "groups": [
            {
                "conditions": _conditions(group[0]),
                "reasons": _reasons_apart(group, groups[:i] + groups[i + 1 :], labels),
                "comparison": _comparison(group, labels),
                "plots": [*_costs(group, level), *_over_time(group, labels, level)],
            }
            for i, group in enumerate(groups)
        ],
        "chapters": [
            {
                "name": labels[run.path], "brief": brief(run.layers), "open": run is moving,
                "explorer": explorer(run.layers, f"run-{i + 1}"),
            }
            for i, run in enumerate(runs) if run.layers
        ],
        "tried": [
            {"name": labels[run.path], "brief": remedies.brief(found),
             "section": remedies.section(found, labels[run.path])}
            for run in runs if (found := run.record.model.get("remedies"))
        ],
    }  # fmt: skip
    return lambda pictures: render("runs", samples=_samples(runs, labels, pictures), **values)


def _conditions(run: Run) -> str:
    """By what the numbers of a table are measured."""
    record = run.record
    words = [f"{numeral(record.sampling['images'])} images"]
    if record.reference:
        words.append(f"against {record.reference.get('name')}")
    words.append(f"features of {record.network.get('title')}")
    return ", ".join(words)


def _reasons_apart(group: list[Run], others: list[list[Run]], labels: Labels) -> list[str]:
    """Why a group must not be compared with each of the others."""
    reasons = []
    for other in others:
        pairs = ((a, b, _blocking_differences(a, b)) for a in group for b in other)
        a, b, found = next(pair for pair in pairs if pair[2])
        reasons.append(f"{labels[a.path]} and {labels[b.path]}: {'; '.join(found)}")
    return reasons


def _comparison(group: list[Run], labels: Labels) -> Markup:
    """The table of a group."""
    columns: dict[str, Column] = {"label": Column(key="label", label="Model")}
    rows = []
    for run in group:
        bits = run.record.model.get("bits")
        row = {"label": labels[run.path], "bits": bits, "baseline": bits == "float",
               "command": run.record.command}  # fmt: skip
        for key, value in _measured(run).items():
            if value.get("value") is None and key in ("size", "speed"):
                continue
            column = Column(
                key=key, label=value["title"], better=value.get("better"),
                digits=_DIGITS.get(key), unit=value.get("unit"),
            )  # fmt: skip
            columns.setdefault(key, column)
            row |= {key: value.get("value"), f"{key}_low": value.get("low"),
                    f"{key}_high": value.get("high")}  # fmt: skip
        rows.append(row)
    last = ["", *_DIGITS]
    ordered = sorted(columns.values(), key=lambda c: last.index(c.key if c.key in last else ""))
    by_bits = 1 < len({row["bits"] for row in rows}) < len(rows)
    minor = _minor_differences(group)
    note = f"{_conditions(group[0])}. Small numbers are intervals at 95\u00a0%."
    if minor:
        note += f" Compare with care: {'; '.join(minor)}."
    return table("Quality and cost", ordered, rows, group=["bits"] if by_bits else (), note=note)


def _measured(run: Run) -> dict[str, dict[str, Any]]:
    """All that a run has a number for, by the keys of columns."""
    record = run.record
    found = {key: dict(value) for key, value in record.metrics.items()}
    if record.paired:
        against = record.paired["against"].get("bits") or "reference"
        for key, value in record.paired["metrics"].items():
            found[f"paired-{key}"] = {**value, "title": f"{value['title']} to {against}"}
    decibels = [d for d in (record.sqnr or {"decibels": []})["decibels"] if is_number(d)]
    if decibels:
        mean = sum(decibels) / len(decibels)
        found["sqnr"] = {"title": "SQNR", "value": mean, "better": "higher", "unit": "dB"}
    speed, size = record.cost.get("images_per_second"), record.cost.get("megabytes")
    found["size"] = {"title": "Size", "value": size, "unit": "MB"}
    found["speed"] = {"title": "Speed", "value": speed, "unit": "images/s"}
    return found


def _costs(group: list[Run], level: int) -> list[Markup]:
    """The first metric that all have, against size and against speed."""
    shared = [k for k in group[0].record.metrics if all(k in r.record.metrics for r in group)]
    if len(group) < 2 or not shared:
        return []
    metric = shared[0]
    about = group[0].record.metrics[metric]
    direction = "lower" if about.get("better") == "lower" else "higher"
    by_scale: dict[str, list[Run]] = {}
    for run in group:
        by_scale.setdefault(str(run.record.model.get("scale") or "float"), []).append(run)
    found = []
    for key, name, unit in (
        ("megabytes", "size", "MB"),
        ("images_per_second", "speed", "images/s"),
    ):
        lines = []
        for scale, runs in by_scale.items():
            those = [run for run in runs if is_number(run.record.cost.get(key))]
            values = [run.record.metrics[metric] for run in those]
            if those:
                line = Line(
                    name=scale,
                    x=[run.record.cost[key] for run in those],
                    y=[value["value"] for value in values],
                    low=[value.get("low") for value in values],
                    high=[value.get("high") for value in values],
                    labels=[_point_label(run, group) for run in those],
                    joined=False,
                )
                lines.append(line)
        if sum(len(line.x) for line in lines) > 1:
            found.append(
                plot(f"Quality against {name}", f"{name}, {unit}",
                     f"{about['title']} ({direction} is better)", lines, x_log=True,
                     y_log=_span_is_wide(lines), points=True, heading=level)
            )  # fmt: skip
    return found


def _span_is_wide(lines: list[Line]) -> bool:
    """Whether a linear axis would press the values together at its lower end."""
    values = [y for line in lines for y in line.y if is_number(y)]
    return min(values, default=0) > 0 and max(values) > 5 * min(values)


def _point_label(run: Run, group: list[Run]) -> str:
    """Its bits, and its steps where those differ."""
    bits, steps = str(run.record.model.get("bits") or ""), run.record.sampling.get("steps")
    if bits == "float":
        bits = ""
    several = len({r.record.sampling.get("steps") for r in group}) > 1
    return f"{bits} {steps} steps".strip() if several else bits


def _over_time(group: list[Run], labels: Labels, level: int) -> list[Markup]:
    """The SQNR of the denoiser over time, if any run has it."""
    lines = [
        Line(name=labels[run.path], x=run.record.sqnr["times"], y=run.record.sqnr["decibels"])
        for run in group
        if run.record.sqnr and run.record.sqnr["times"]
    ]
    if not lines:
        return []
    return [plot("Error of the denoiser over time", "timestep", "SQNR in dB (higher is better)",
                 lines, heading=level)]  # fmt: skip


def _samples(runs: Sequence[Run], labels: Labels, pictures: Pictures) -> list[dict[str, Any]]:
    """A figure for each noise with the samples that every model makes of it; then the grids of
    runs that have nothing else, such as those of given images.
    """
    noises: dict[tuple[Any, ...], list[Run]] = {}
    grids: list[tuple[Run, Path]] = []
    for run in runs:
        if run.pictures and not _is_given(run):
            noises.setdefault(_noise(run), []).append(run)
        elif run.grid:
            grids.append((run, run.grid))
    found = []
    for noise, members in noises.items():
        tile = pictures.width(members[0].pictures[0])
        count = pictures.count(min(SHOWN, *(len(run.pictures) for run in members)), tile)
        words = [labels[run.path] for run in members]
        sheets = [pictures.sheet(run.pictures[:count], COLUMNS) for run in members]
        title = f"Samples of {words[0]}"
        note = f"The first {count}, none chosen."
        if len(members) > 1:
            title = "Samples from the same noise"
            title += f" (seed {noise[0]})" if len(noises) > 1 else ""
            note = f"The same place is the same noise. {note}"
        alts = [f"The first {count} samples of {name}" for name in words]
        found.append({"title": title, "note": note, "words": words,
                      "sheets": list(zip(words, alts, sheets, strict=True))})  # fmt: skip
    return found + [_grid(run, file, labels[run.path], pictures) for run, file in grids]


def _grid(run: Run, file: Path, name: str, pictures: Pictures) -> dict[str, Any]:
    """The first pictures of a run that stands by itself."""
    images = max(1, run.record.sampling["images"])
    count = min(IN_GRID, images)
    what = "images" if _is_given(run) else "samples"
    alt = f"The first {count} {what} of {name}"
    return {
        "title": f"{what.capitalize()} of {name}",
        "note": f"The first {count} of {numeral(images)}, none chosen.",
        "words": [],
        "sheets": [("", alt, pictures.grid(file, count))],
    }


def _is_given(run: Run) -> bool:
    """Whether the images were made elsewhere, from unknown noise."""
    return run.record.sampling.get("seed") is None


def _noise(run: Run) -> tuple[Any, ...]:
    """What determines the noise of a run's pictures."""
    sampling = run.record.sampling
    return sampling["seed"], str(sampling.get("shape")), str(sampling.get("prompts"))
