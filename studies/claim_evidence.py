"""Comparisons that parts of the paper's claims are judged by, from runs of the other studies.

Each function takes a model, or gives a function that does, and returns what was compared on it:
nothing where there are no runs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

import ledger
from arms import DEFAULT, STATIC, TIME, WITHOUT
from claim_rules import GAIN, SEEDS, Evidence, lead, over_seeds, share
from contrasts import errors_of, paired
from distance_tables import FLOAT, difference, names
from ledger import Run
from verdicts import compared

LESS = 1 / (1 + GAIN)
"""Ratio below which an error is smaller."""
PARALLEL = 1.15
"""Most by which a ratio to the float model may grow."""
SAME_COST = 1.01
STILL = 0.3
"""Correlation below which an input barely depends on the timestep."""

Found = list[Evidence]


def file_of(name: str) -> dict[str, Any]:
    """The file of a study; one without runs if there is none yet."""
    file = ledger.RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {"runs": [], "settings": {}}


def runs_of(name: str, **key: Any) -> list[Run]:
    """Runs of a study with these values."""
    return [r for r in file_of(name)["runs"] if all(r.get(k) == v for k, v in key.items())]


def by_seed(runs: list[Run], value: str, **key: Any) -> dict[int, float]:
    """A value by seed."""
    found = [run for run in runs if all(run.get(k) == v for k, v in key.items())]
    return {run["seed"]: run[value] for run in found}


# 1. Activations and time


def movement(model: str) -> list[float]:
    """Absolute correlations of the inputs of a model with the timestep."""
    return [abs(run["r"]) for run in runs_of("movement", model=model)]


def above(bound: float, least: float) -> Callable[[str], Found]:
    """Share of inputs that correlate more than ``bound``, which is above ``least``."""

    def evidence(model: str) -> Found:
        r = movement(model)
        return [share(f"{len(r)} inputs", [x > bound for x in r], least)] if r else []

    return evidence


def still(model: str) -> Found:
    """Share of inputs that barely depend on time: the reported 30 %, give or take 10."""
    r = [x < STILL for x in movement(model)]
    if not r:
        return []
    what = f"{sum(r)} of {len(r)} inputs"
    return [share(what, r, 0.2), share(what, r, 0.4, above=False)]


def middle(model: str) -> Found:
    """Share of those that lie in the middle."""
    inputs = [run for run in runs_of("movement", model=model) if abs(run["r"]) < STILL]
    flags = ["mid" in run["layer"] for run in inputs]
    return [share(f"{sum(flags)} of {len(flags)} inputs", flags, 0.5)] if flags else []


def latent(model: str) -> Found:
    """The share above 0.5 of the latent model minus the pixel model's."""
    pixel, own = movement("cats-ddpm"), movement(model)
    if not pixel or not own:
        return []
    return [lead("minus cats-ddpm's", [x > 0.5 for x in own], [x > 0.5 for x in pixel])]


# 2 to 5. Training


def chosen(runs: list[Run]) -> list[Run]:
    """Runs at the rate that left each method the smaller loss on seed 0."""
    best: dict[tuple[str, ...], Run] = {}
    for run in runs:
        key = run["model"], run["bits"], run["method"]
        if run["seed"] == 0 and (key not in best or run["loss"] < best[key]["loss"]):
            best[key] = run
    return [
        run for run in runs
        if run["rate"] == best[run["model"], run["bits"], run["method"]]["rate"]
    ]  # fmt: skip


def trained(
    method: str, others: tuple[str, ...], widths: tuple[str, ...], value: str = "frechet"
) -> Callable[[str], Found]:
    """A method against others after training: the difference of distances in shares of the float
    model's, or the ratio of paired errors.
    """

    def evidence(model: str) -> Found:
        everything = runs_of("qat", model=model)
        exact = [run["frechet"] for run in everything if run["method"] == "float"]
        runs = chosen([run for run in everything if run["method"] != "float"])
        found = []
        for bits in widths:
            own = by_seed(runs, value, bits=bits, method=method)
            for other in others:
                base = by_seed(runs, value, bits=bits, method=other)
                both = sorted(own.keys() & base.keys())
                what = f"{bits}, against {other}"
                if both and value == "frechet" and exact:
                    shares = [(own[s] - base[s]) / exact[0] for s in both]
                    found.append(over_seeds(what, shares, -GAIN))
                elif both and value != "frechet":
                    ratios = [own[s] / base[s] for s in both]
                    found.append(over_seeds(what, ratios, LESS, ratio=True))
        return found

    return evidence


def shaped(part: str) -> Callable[[str], Found]:
    """Other forms of the network against the published one, after training at W4A4."""

    def evidence(model: str) -> Found:
        runs = runs_of("ablations") if model == "cats-ddpm" else []
        exact = [run["frechet"] for run in runs_of("qat", model=model, method="float")]
        base = by_seed(runs, "frechet", part="published form")
        found = []
        for choice in dict.fromkeys(run["choice"] for run in runs if run["part"] == part):
            other = by_seed(runs, "frechet", part=part, choice=choice)
            shares = [(base[s] - other[s]) / exact[0] for s in sorted(base.keys() & other.keys())]
            found.append(over_seeds(f"against {part} {choice}", shares, -GAIN))
        return found

    return evidence


# 6. Calibration


def calibrated(bits: str) -> Callable[[str], Found]:
    """Temporal over static scales with every estimator, by the median of the paired error."""

    def evidence(model: str) -> Found:
        runs, found = runs_of("ptq", model=model, bits=bits), []
        for method in dict.fromkeys(run["method"] for run in runs if run["scale"] == "temporal"):
            own, base = (
                by_seed(runs, "paired_median", method=method, scale=scale)
                for scale in ("temporal", "static")
            )
            ratios = [own[s] / base[s] for s in sorted(own.keys() & base.keys())]
            found.append(over_seeds(method, ratios, LESS, ratio=True))
        return found or contrasted(bits, (STATIC, TIME), (STATIC, WITHOUT))(model)

    return evidence


def contrasted(bits: str, arm: tuple[str, str], base: tuple[str, str]) -> Callable[[str], Found]:
    """Two arms of ``alternatives``, by the geometric mean of the paired error."""

    def evidence(model: str) -> Found:
        table = errors_of(runs_of("alternatives", model=model, bits=bits))
        errors = paired(table, (model, bits, *arm), (model, bits, *base))
        if not errors:
            return []
        own, other = (torch.stack([e[i] for e in errors.values()]) for i in (0, 1))
        found = compared(own, other)
        ratio = found.ratios["geometric"]
        ends = (ratio.low, ratio.high) if found.seeds >= SEEDS else (float("nan"),) * 2
        return [Evidence(f"{arm[0]}, against {base[0]}", ratio.value, *ends, LESS)]

    return evidence


def judged(metrics: tuple[str, ...]) -> Callable[[str], Found]:
    """The default against static scales by distances of 5,000 images, at every width: excess over
    the float model's minus the other's, in shares of the float model's value.
    """

    def evidence(model: str) -> Found:
        study = file_of("distances")
        runs = [run for run in study["runs"] if run["model"] == model]
        exact = next((run for run in runs if run["arm"] == FLOAT), None)
        found = []
        for run in runs if exact else ():
            other = [r for r in runs if r["bits"] == run["bits"] and r["arm"] == STATIC]
            if run["arm"] != DEFAULT or not other:
                continue
            for name in names(run):
                network, metric = name.split()
                if metric in metrics:
                    told = difference(run, other[0], name, study["settings"]["images"])
                    values = [x / exact[name] for x in (told.value, told.low, told.high)]
                    what = f"{run['bits']}, {metric} by {network}"
                    found.append(Evidence(what, *values, -GAIN))
        return found

    return evidence


# 7 and 8. Sampling


def grown(method: str, against: str) -> Callable[[str], Found]:
    """From 100 to 10 steps: by how much the distance over another one's grows."""

    def evidence(model: str) -> Found:
        runs = runs_of("fast_forward") if model == "cats-ddpm" else []
        at = {(r["method"], r["scheduler"], r["steps"]): r["frechet"] for r in runs}
        found = []
        for scheduler in dict.fromkeys(run["scheduler"] for run in runs):
            ratios = [at[method, scheduler, n] / at[against, scheduler, n] for n in (10, 100)]
            bound = PARALLEL if against == "float" else LESS
            found.append(over_seeds(scheduler, [ratios[0] / ratios[1]], bound, ratio=True))
        return found

    return evidence


def called(model: str) -> Found:
    """Median time of calls, temporal over static, over widths, batches and engines: the interval
    of order statistics.
    """
    runs = runs_of("cost", model=model, work="call")
    static, temporal = (
        {(r["bits"], r["batch"], r["backend"]): r["milliseconds"] for r in runs if r["scale"] == s}
        for s in ("static", "temporal")
    )
    ratios = sorted(temporal[at] / static[at] for at in temporal.keys() & static.keys())
    if not ratios:
        return []
    # The median of n lies between the k-th from either end, with 95 %: k by the normal law.
    k = max(0, round(len(ratios) / 2 - 0.98 * len(ratios) ** 0.5) - 1)
    what = f"median of {len(ratios)} pairs"
    return [Evidence(what, statistics.median(ratios), ratios[k], ratios[-1 - k], SAME_COST)]
