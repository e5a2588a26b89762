"""Which records must not be compared, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdquant.lab.evaluation.record import Record

WARNING = "warning: "
"""Prefix of reasons that ask for care and do not forbid a comparison."""
_SPEED = ("device", "processor", "cores", "threads")
"""The parts of a machine's description that speeds depend on."""


def incomparable(a: Record, b: Record) -> list[str]:
    """Every reason why the metrics of two records must not stand in one table.

    Reasons that only ask for care, such as another sampler where samplers are compared, begin with
    ``WARNING``.
    """
    reasons: list[str] = []

    def both(part: str, key: str) -> list[Any]:
        return [(getattr(record, part) or {}).get(key) for record in (a, b)]

    def check(values: list[Any], words: str, warn: bool = False) -> None:
        if values[0] != values[1]:
            reasons.append((WARNING if warn else "") + words.format(*values))

    if a.network.get("digest") != b.network.get("digest"):
        names = [f"{r.network.get('title')} ({r.network.get('digest')})" for r in (a, b)]
        reasons.append(f"feature networks {names[0]} and {names[1]}")
    if (a.reference is None) != (b.reference is None):
        reasons.append("one has no reference set")
    else:
        for key in ("name", "images", "preprocessing", "digest"):
            check(both("reference", key), f"reference {key} {{}} and {{}}")
    check(both("sampling", "images"), "{} and {} images")
    # The shape of latents says little; records from before the size have nothing else.
    shown = "size" if all(both("sampling", "size")) else "shape"
    check(both("sampling", shown), "images of {} and {}")
    check(both("sampling", "prompts"), "other prompts")
    one, other = (call or {} for call in both("sampling", "call"))
    for key in sorted({**one, **other}):
        values = [one.get(key), other.get(key)]
        # A number, such as a guidance scale, may be what is compared.
        numbers = all(v is None or isinstance(v, (int, float)) for v in values)
        check(values, f"{key} {{}} and {{}}", warn=numbers)
    reasons += _other_networks(a.metrics, b.metrics)
    if a.paired and b.paired:
        reasons += _other_networks(a.paired_metrics, b.paired_metrics)
        if a.paired["against"].get("digest") != b.paired["against"].get("digest"):
            reasons.append("paired errors against other models")
        check(both("sampling", "seed"), "paired errors from other seeds")
        check(both("paired", "images"), "paired errors of {} and {} images")
    for key in ("steps", "eta"):
        check(both("sampling", key), f"sampler {key} {{}} and {{}}", warn=True)
    schedulers = [scheduler or {} for scheduler in both("sampling", "scheduler")]
    if schedulers[0].get("digest") != schedulers[1].get("digest"):
        names = [str(scheduler.get("name")) for scheduler in schedulers]
        reasons.append(f"{WARNING}schedulers {names[0]} and {names[1]}")
    if shown == "size" and a.sampling["size"] == b.sampling["size"]:
        check(both("sampling", "preprocessing"), "images {} and {}", warn=True)
    if all(both("cost", "images_per_second")):
        machines = [{key: record.machine.get(key) for key in _SPEED} for record in (a, b)]
        check(machines, "speeds on two machines", warn=True)
        check(both("sampling", "batch"), "speeds in batches of {} and {}", warn=True)
    check([a.tdquant, b.tdquant], "tdquant {} and {}", warn=True)
    return reasons


def _other_networks(
    a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Metrics with networks of their own that differ, or that one record does not name."""
    reasons = []
    for name in sorted(set(a) & set(b)):
        found = [metrics[name].get("network") for metrics in (a, b)]
        if found[0] != found[1]:
            how = "an unknown network" if None in found else "two networks"
            reasons.append(f"{a[name].get('title', name)} by {how}")
    return reasons
