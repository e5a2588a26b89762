"""Tables, plots and sentences of rows that compare arms (``contrasts.py``)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ledger import Run, column
from verdicts import HURTS, OPEN, USELESS, VERDICTS

NEGATIVE = HURTS, USELESS


def ratios(title: str, note: str, rows: list[Run]) -> dict[str, Any]:
    """A table of ratios."""
    return {
        "title": title,
        "note": note,
        "group": ["model", "role", "bits"],
        "columns": [
            column("label", "Arm"),
            column("verdict", "Verdict"),
            column("geometric", "Ratio of geometric means", 3, "lower"),
            column("mean", "of means", 3),
            column("median", "of medians", 3),
            column("threshold", "Threshold", 2),
            column("seeds", "Seeds"),
        ],
        "rows": rows,
    }


def summary(contrasts: list[Run], instead: list[Run], best: list[Run]) -> list[str]:
    """Clauses on the verdicts, negative ones first."""
    clauses, others = [], [row for row in instead if row["verdict"] in VERDICTS]
    for role in sorted({row["role"] for row in contrasts}, reverse=True):
        rows = [row for row in contrasts if row["role"] == role]
        counts = Counter(row["verdict"] for row in rows)
        told = [f"{v} in {counts[v]}" for v in VERDICTS if v != OPEN and counts[v]]
        told += [f"{counts[OPEN]} {OPEN}"] * bool(counts[OPEN])
        clauses.append(f"of {len(rows)} pairs ({role}) {', '.join(told)}")
    for what, rows in (
        ("with time over without", contrasts),
        ("s(t) in the place of an alternative", others),
        ("the default over the best without time", best),
    ):
        found = [row for row in rows if row["verdict"] in NEGATIVE]
        if found:
            clauses.append(f"strongest counter-example, {what}: {counter_example(found)}")
        elif rows:
            clauses.append(f"no counter-example, {what}")
    return clauses


def counter_example(rows: list[Run]) -> str:
    """The row with the most to say against time, in words: by the end of its interval."""
    worst = max(rows, key=lambda row: (row["verdict"] == HURTS, row["geometric_low"]))
    return (
        f"{worst['label']} on {worst['model']} at {worst['bits']}, {worst['geometric']:.2f}x "
        f"({worst['geometric_low']:.2f} to {worst['geometric_high']:.2f})"
    )


def plots(rows: list[Run]) -> list[dict[str, Any]]:
    """Ratios of each model by arm, one colour a width."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        labels = sorted({row["label"] for row in mine})
        lines = []
        for hue, bits in enumerate(dict.fromkeys(row["bits"] for row in mine)):
            those = [row for row in mine if row["bits"] == bits]
            lines.append(
                {
                    "name": bits, "hue": hue, "joined": False,
                    "x": [labels.index(row["label"]) for row in those],
                    "y": [row["geometric"] for row in those],
                    "low": [row["geometric_low"] for row in those],
                    "high": [row["geometric_high"] for row in those],
                }
            )  # fmt: skip
        found.append(
            {
                "title": f"{model}: error with s(t) over without",
                "x": {"label": "arm", "words": labels},
                "y": {"label": "ratio of geometric means", "log": True},
                "points": True,
                "lines": lines,
                "note": mine[0]["role"],
            }
        )
    return found
