"""The shape of a record for ``tdquant.files.shapes``, and what is wrong with one."""

from __future__ import annotations

from typing import Any

from tdquant.files.shapes import GAP, NUMBER, mistakes

METRIC = {"title": str, "value": GAP, "low?": NUMBER, "high?": NUMBER, "better?": str,
          "unit?": str, "network?": str}  # fmt: skip
SHAPE = {
    "tdquant": str,
    "created": str,
    "model": {"name": str, "bits?": str, "scale?": str},
    "sampling": {
        "images": int, "steps?": int, "size?": [int], "scheduler?": {"name?": str}, "call?": dict,
    },
    "reference?": {"name": str, "images?": int},
    "network": dict,
    "metrics": dict,
    "cost": {"seconds?": NUMBER, "sampling_seconds?": NUMBER, "images_per_second?": NUMBER,
             "megabytes?": NUMBER},
    "machine": dict,
    "paired?": {"against": {"name?": str, "bits?": str}, "images": int, "metrics": dict},
    "sqnr?": {"times": [NUMBER], "decibels": [GAP]},
    "command?": str,
    "asked?": str,
}  # fmt: skip


def record_mistakes(spec: dict[str, Any]) -> list[str]:
    """Every way in which JSON is not of the shape of a record, each with the place where."""
    wrong = mistakes(spec, SHAPE)
    if wrong:
        return wrong
    paired = (spec.get("paired") or {"metrics": {}})["metrics"]
    for part, metrics in (("metrics", spec["metrics"]), ("paired.metrics", paired)):
        wrong += mistakes(metrics, dict.fromkeys(metrics, METRIC), part)
    sqnr = spec.get("sqnr") or {"times": [], "decibels": []}
    if len(sqnr["times"]) != len(sqnr["decibels"]):
        wrong.append("sqnr has lists of different lengths")
    size = spec["sampling"].get("size")
    if size is not None and len(size) != 2:
        wrong.append("sampling.size is not a height and a width")
    return wrong
