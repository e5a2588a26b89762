"""Tables and numbers of training."""

import statistics

from scripts.results.study_rows import (
    distances,
    one,
    range_of,
    rows_of,
    words,
)
from scripts.results.tables import register_number, register_table, threads


@register_table
def trained(found: dict) -> str:
    """Distances after training with every kind of scale."""
    settings = found["settings"]

    def row(model: str, method: str, widths: list[str], form: str) -> list[str]:
        key = {"model": model, "method": method}
        return [method, *(format(one(found, "frechet", bits=b, **key), form) for b in widths)]

    return distances(found, row) + (
        f", after {settings['steps']} optimizer steps of batch {settings['batch']} of "
        f"distillation. {threads(found)}."
    )


@register_number
def over_lsq(found: dict, model: str, *bits: str) -> str:
    """TDQ's distance over the better LSQ's, at these widths or all."""
    return range_of([_over_lsq(found, model, b) for b in bits or words(found, "bits", model)])


def _over_lsq(found: dict, model: str, bits: str) -> float:
    at = {"model": model, "bits": bits}
    others = (one(found, "frechet", method=m, **at) for m in ("LSQ", "LSQ, judged start"))
    return one(found, "frechet", method="TDQ", **at) / min(others)


@register_number
def seeds_spread(found: dict) -> str:
    """Median and largest distance of the largest seed to the least, over their mean."""
    spreads = [
        (row["frechet_high"] - row["frechet_low"]) / row["frechet"]
        for row in rows_of(found)
        if row["seeds"] > 1
    ]
    return f"{statistics.median(spreads):.0%} in the median row and {max(spreads):.0%} at most"
