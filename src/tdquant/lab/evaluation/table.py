"""Records as text for a terminal: one with its intervals, or several side by side with what must
not be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tdquant.lab.evaluation.record import WARNING, Record, incomparable


def _value(measured: Mapping[str, Any] | None, ends: bool = True) -> str:
    """A number with the ends of its interval, or with half its width."""
    if measured is None or measured.get("value") is None:
        return "-"
    low, high = measured.get("low"), measured.get("high")
    if low is None or high is None:
        return f"{measured['value']:.4g}"
    if ends:
        return f"{measured['value']:.4g} [{low:.4g}, {high:.4g}]"
    return f"{measured['value']:.4g} ±{(high - low) / 2:.2g}"


def record_table(record: Record) -> str:
    """The metrics of one record, a line each, with their intervals."""
    paired = record.paired or {"metrics": {}}
    rows = [(m["title"], _value(m), _arrow(m)) for m in record.metrics.values()]
    rows += [(f"{m['title']}, paired", _value(m), _arrow(m)) for m in paired["metrics"].values()]
    decibels = [d for d in (record.sqnr or {}).get("decibels", []) if d is not None]
    if decibels:
        mean = sum(decibels) / len(decibels)
        rows.append(("SQNR of the denoiser, mean over time", f"{mean:.1f} dB", "higher is better"))
    width = max((len(title) for title, _, _ in rows), default=0)
    side = max((len(value) for _, value, _ in rows), default=0)
    lines = [_heading(record)]
    lines += [f"  {t:<{width}}  {v:<{side}}  {better}".rstrip() for t, v, better in rows]
    against = []
    if record.reference:
        count, name = record.reference.get("images"), record.reference["name"]
        against.append(f"against {count} images of {name}" if count else f"against {name}")
    if record.paired:
        other = record.paired["against"].get("name") or "another model"
        against.append(f"paired with {record.paired['images']} images of {other}")
    return "\n".join([*lines, *(["  " + "; ".join(against)] if against else [])])


def _heading(record: Record) -> str:
    sampling, cost = record.sampling, record.cost
    words = [f"{_name(record)}: {sampling['images']} images"]
    if sampling.get("steps"):
        sampler = (sampling.get("scheduler") or {}).get("name")
        words.append(f"{sampling['steps']} steps" + (f" of {sampler}" if sampler else ""))
    if cost.get("images_per_second"):
        words.append(f"{cost['images_per_second']:.2f} images/s")
    return ", ".join(words)


def _arrow(measured: Mapping[str, Any]) -> str:
    return f"{measured['better']} is better" if measured.get("better") else ""


def _name(record: Record) -> str:
    model = record.model
    kind = " ".join(str(model.get(k) or "") for k in ("bits", "scale")).strip()
    return f"{model['name']} {kind}".strip()


def comparison_table(records: Sequence[Record], names: Sequence[str] = ()) -> str:
    """Several records side by side; beneath, which must not be compared, and why.

    Arguments:
        records: What to show, a row each.
        names: What to call them; the models' names if empty.
    """
    named = list(names) or [_name(record) for record in records]
    columns: dict[tuple[str, str], str] = {}
    for record in records:
        for key, measured in record.metrics.items():
            columns.setdefault(("metrics", key), measured["title"])
        for key, measured in (record.paired or {"metrics": {}})["metrics"].items():
            columns.setdefault(("paired", key), f"{measured['title']}, paired")
    cells = [["run", "model", "images", "steps", *columns.values()]]
    for name, record in zip(named, records, strict=True):
        sections = {
            "metrics": record.metrics,
            "paired": (record.paired or {"metrics": {}})["metrics"],
        }
        found = [_value(sections[part].get(key), ends=False) for part, key in columns]
        counts = [str(record.sampling.get(k) or "-") for k in ("images", "steps")]
        cells.append([name, _name(record), *counts, *found])
    if named == [_name(record) for record in records]:
        cells = [[line[0], *line[2:]] for line in cells]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
             for line in cells]  # fmt: skip
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join([*lines, *_caveats(records, named)])


def _caveats(records: Sequence[Record], named: Sequence[str]) -> list[str]:
    """A line for each pair that must not be compared, or only with care."""
    lines = []
    for (i, a), (j, b) in combinations(enumerate(records), 2):
        reasons = incomparable(a, b)
        grave = [reason for reason in reasons if not reason.startswith(WARNING)]
        mild = [reason.removeprefix(WARNING) for reason in reasons if reason not in grave]
        if grave:
            lines.append(f"not comparable: {named[i]} and {named[j]}: {'; '.join(grave)}")
        if mild:
            lines.append(f"with care: {named[i]} and {named[j]}: {'; '.join(mild)}")
    return lines
