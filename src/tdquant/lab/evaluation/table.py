"""Records as text tables: one record with its intervals, or several side by side with the pairs
that must not be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tdquant.lab.evaluation.comparison import WARNING, incomparable
from tdquant.lab.evaluation.record import Record
from tdquant.support.tables import text_table


def _value(measured: Mapping[str, Any] | None, ends: bool = True) -> str:
    """A value with the ends of its interval, or with half its width."""
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
    measured = [(m["title"], m) for m in record.metrics.values()]
    measured += [(f"{m['title']}, paired", m) for m in record.paired_metrics.values()]
    rows = [
        [title, _value(m), f"{m['better']} is better" if m.get("better") else ""]
        for title, m in measured
    ]
    decibels = [d for d in (record.sqnr or {}).get("decibels", []) if d is not None]
    if decibels:
        mean = sum(decibels) / len(decibels)
        rows.append(["SQNR of the denoiser, mean over time", f"{mean:.1f} dB", "higher is better"])
    against = []
    if record.reference:
        count, name = record.reference.get("images"), record.reference["name"]
        against.append(f"against {count} images of {name}" if count else f"against {name}")
    if record.paired:
        other = record.paired["against"].get("name") or "another model"
        against.append(f"paired with {record.paired['images']} images of {other}")
    lines = [*text_table(rows).splitlines(), *(["; ".join(against)] if against else [])]
    return "\n  ".join([_heading(record), *lines])


def _heading(record: Record) -> str:
    sampling, cost = record.sampling, record.cost
    words = [f"{_name(record)}: {sampling['images']} images"]
    if sampling.get("steps"):
        sampler = (sampling.get("scheduler") or {}).get("name")
        words.append(f"{sampling['steps']} steps" + (f" of {sampler}" if sampler else ""))
    if cost.get("images_per_second"):
        words.append(f"{cost['images_per_second']:.2f} images/s")
    return ", ".join(words)


def _name(record: Record) -> str:
    model = record.model
    return " ".join(str(model[k]) for k in ("name", "bits", "scale") if model.get(k))


def comparison_table(records: Sequence[Record], names: Sequence[str] = ()) -> str:
    """Several records side by side; below, the pairs that must not be compared, and why.

    Arguments:
        records: A row each.
        names: Their names; the models' names if empty.
    """
    models = [_name(record) for record in records]
    named = list(names) or models
    metrics: dict[str, str] = {}
    paired: dict[str, str] = {}
    for record in records:
        for key, measured in record.metrics.items():
            metrics.setdefault(key, measured["title"])
        for key, measured in record.paired_metrics.items():
            paired.setdefault(key, f"{measured['title']}, paired")
    headers = ["run", "model", "images", "steps", *metrics.values(), *paired.values()]
    rows = []
    for name, model, record in zip(named, models, records, strict=True):
        counts = [str(record.sampling.get(k) or "-") for k in ("images", "steps")]
        found = [record.metrics.get(key) for key in metrics]
        found += [record.paired_metrics.get(key) for key in paired]
        rows.append([name, model, *counts, *(_value(m, ends=False) for m in found)])
    if named == models:
        headers, *rows = [row[:1] + row[2:] for row in (headers, *rows)]
    return "\n".join([text_table(rows, headers), *_caveats(records, named)])


def _caveats(records: Sequence[Record], named: Sequence[str]) -> list[str]:
    """A line for each pair that must not be compared, or only with care."""
    lines = []
    for (i, a), (j, b) in combinations(enumerate(records), 2):
        reasons = incomparable(a, b)
        blocking = [reason for reason in reasons if not reason.startswith(WARNING)]
        minor = [reason.removeprefix(WARNING) for reason in reasons if reason not in blocking]
        if blocking:
            lines.append(f"not comparable: {named[i]} and {named[j]}: {'; '.join(blocking)}")
        if minor:
            lines.append(f"with care: {named[i]} and {named[j]}: {'; '.join(minor)}")
    return lines
