"""Names of runs, by the facts in which they differ, and their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tdquant.lab.report.reading import Run

FLOAT_BITS = 32


def label_runs(runs: Sequence[Run]) -> list[str]:
    """A unique name for each run.

    It has bits and scale; model, steps, sampler, backend and seed if they differ; the folder if
    nothing else does.
    """
    facts = [_facts(run) for run in runs]
    differing = [len(set(values)) > 1 for values in zip(*facts, strict=True)]
    names = []
    for fact in facts:
        model, bits, scale, *rest = fact
        words = [model] * (differing[0] or len(runs) == 1) + [bits, scale]
        words += [word for word, differs in zip(rest, differing[3:], strict=True) if differs]
        names.append(" ".join(word for word in words if word) or model)
    return [
        f"{name} ({_place(run, [r for r, n in zip(runs, names, strict=True) if n == name])})"
        if names.count(name) > 1
        else name
        for name, run in zip(names, runs, strict=True)
    ]


def _place(run: Run, alike: Sequence[Run]) -> str:
    """The shortest end of a run's path that differs from the others'."""
    parts = run.path.resolve().parts
    others = [r.path.resolve().parts for r in alike if r is not run]
    count = 1
    while count < len(parts) and any(o[-count:] == parts[-count:] for o in others):
        count += 1
    return "/".join(parts[-count:])


def _facts(run: Run) -> list[str]:
    model, sampling = run.record.model, run.record.sampling
    bits = str(model.get("bits") or "")
    scale = str(model.get("scale") or "")
    steps, eta = sampling.get("steps"), sampling.get("eta")
    seed = sampling.get("seed")
    scheduler = (sampling.get("scheduler") or {}).get("name")
    backend = str(sampling.get("backend") or "")
    return [
        str(model.get("name") or "model"),
        bits,
        scale if scale != bits else "",
        f"{steps} steps" if steps else "",
        f"eta {eta}" if eta is not None else "",
        str(scheduler or "") if seed is not None else "",  # of given images it is "unknown"
        backend if backend != bits else "",
        f"seed {seed}" if seed is not None else "",
    ]


def bits_of(bits: str) -> tuple[float, float]:
    """Bits of weights and activations of ``"W4A8"``; 32 for float, 7.5 for mixed ones."""
    found = re.fullmatch(r"W(\d+)A(\d+)", bits)
    if found:
        return float(found[1]), float(found[2])
    return (FLOAT_BITS, FLOAT_BITS) if bits == "float" else (7.5, 7.5)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs by decreasing bits, then by decreasing sampler steps."""

    def key(run: Run) -> tuple[float, float, float]:
        weights, activations = bits_of(str(run.record.model.get("bits")))
        return -weights - activations, -weights, -(run.record.sampling.get("steps") or 0)

    return sorted(runs, key=key)
