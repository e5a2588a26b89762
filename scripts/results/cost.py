"""What temporal scales cost."""

import statistics

from scripts.results.study_rows import (
    MODELS,
    range_of,
    rows_of,
)
from scripts.results.tables import markdown, register_number, register_table, threads


def _calls(found: dict, backend: str) -> list[float]:
    """Milliseconds of a call with temporal scales over those with static ones."""
    names = ("model", "batch", "bits", "backend")
    times = {
        (row["scale"], *(row[name] for name in names)): row["milliseconds"]
        for row in rows_of(found)
        if row["work"] == "call" and backend in ("all", row["backend"])
    }
    return [
        value / times[("static", *key)]
        for (scale, *key), value in times.items()
        if scale == "temporal"
    ]


@register_number
def call_median(found: dict) -> float:
    """Their median."""
    return statistics.median(_calls(found, "all"))


@register_number
def call_pairs(found: dict) -> int:
    """How many pairs there are."""
    return len(_calls(found, "all"))


@register_number
def call_range(found: dict, backend: str) -> str:
    """Least and largest of an engine, or of all."""
    return range_of(_calls(found, backend))


@register_table
def cost_of_training(found: dict) -> str:
    """A training step with every kind of scale over float's."""
    rows = []
    for model in MODELS:
        steps = [r for r in rows_of(found) if (r["model"], r["work"]) == (model, "training step")]
        rows.append([model, *(f"{r['ratio']:.2f}" for r in steps if r["scale"] != "float")])
    kinds = [r["scale"] for r in steps if r["scale"] != "float"]
    batch = found["settings"]["training_batch"]
    return (
        f"{markdown(['step / float step', *kinds], rows, slice(1, None))}\n\nW4A4, batch {batch}, "
        f"medians of {found['settings']['rounds']}. {threads(found)}."
    )
