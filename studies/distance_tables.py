"""What runs of ``distances`` say: excesses over the float model, and differences of two arms.

With f the value of a metric, ``f_r`` that of subset r of the images, a and b two sets from the
same noise, the interval of ``f(a) - f(b)`` is that of ``tdquant.lab.metrics.bootstrap`` over
``f_r(a) - f_r(b)``: the subsets leave the same noise out of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ledger import Ledger, Run, column, marks
from tdquant.lab.metrics import SET_METRICS
from tdquant.lab.metrics.bootstrap import Interval, interval, subsets

FLOAT = "float"
CLOSER, FARTHER, OPEN = "closer", "farther", "not decided"
TITLES = {"efficientnet-lite0": "EfficientNet-Lite0", "vgg16": "shift-tolerant VGG-16"}
METRICS = {"frechet": "Frechet", "kid": "Kernel", "precision": "Precision", "recall": "Recall"}
JUDGES = ("frechet", "kid")
"""Metrics that decide; precision and recall are told beside them."""


def difference(run: Run, other: Run, name: str, images: int) -> Interval:
    """The value ``name`` of a run minus that of another, with its interval of 95 %."""
    a, b = (_draws(each[f"{name} draws"]) for each in (run, other))
    factor = subsets(images, 2, 0)[1]
    return interval(run[name] - other[name], a - b, factor=factor)


def _draws(text: str) -> torch.Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def told(found: Interval, key: str) -> Run:
    """A value and its interval in a row."""
    ends = {"": found.value, "_low": found.low, "_high": found.high}
    return {f"{key}{end}": float(f"{value:.5g}") for end, value in ends.items()}


def again(run: Run, command: str) -> str:
    """The command that makes a run again."""
    return f'{command} --model {run["model"]} --bits {run["bits"]} --arm "{run["arm"]}" --again'


def excesses(ledger: Ledger, command: str) -> list[Run]:
    """A row for each arm: every metric over the float model's."""
    rows = []
    for run in ledger.runs:
        base = ledger.find(model=run["model"], bits=FLOAT)
        if run["arm"] == FLOAT or base is None:
            continue
        row = {k: run[k] for k in ("model", "bits", "arm", "paired_median")}
        row["command"] = again(run, command)
        for name in names(run):
            row |= told(difference(run, base, name, ledger.settings["images"]), name)
        rows.append(row)
    return rows


def names(run: Run) -> list[str]:
    """``NETWORK METRIC`` of all values of a run."""
    return [key.removesuffix(" draws") for key in run if key.endswith(" draws")]


def versus(ledger: Ledger, arm: str, command: str) -> list[Run]:
    """A row for each other arm and network: values of ``arm`` minus the other's, and whether it
    is closer to the data by both distances.
    """
    rows = []
    for run in ledger.select(arm=arm):
        others = [
            other
            for other in ledger.select(model=run["model"], bits=run["bits"])
            if other["arm"] != arm
        ]
        for other in others:
            for network, title in TITLES.items():
                row = {"model": run["model"], "bits": run["bits"], "arm": other["arm"]}
                row |= {"network": title, "command": again(other, command)}
                for metric in METRICS:
                    name = f"{network} {metric}"
                    found = difference(run, other, name, ledger.settings["images"])
                    row |= told(found, metric)
                rows.append(row | {"verdict": decided(row)})
    return rows


def decided(row: Run) -> str:
    """*Closer* or *farther* if the intervals of both distances say so, else *not decided*."""
    if all(row[f"{metric}_high"] < 0 for metric in JUDGES):
        return CLOSER
    return FARTHER if all(row[f"{metric}_low"] > 0 for metric in JUDGES) else OPEN


def clauses(rows: Sequence[Run], arm: str) -> list[str]:
    """Verdicts on ``arm`` in words, those against it first, with the strongest counter-example."""
    found = []
    for other in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == other]
        counts = Counter(row["verdict"] for row in mine)
        words = [f"{v} in {counts[v]}" for v in (FARTHER, CLOSER) if counts[v]]
        words += [f"{counts[OPEN]} {OPEN}"] * bool(counts[OPEN])
        found.append(
            f"{arm} against {other}, of {len(mine)} pairs (model, width, network): "
            f"{', '.join(words)}"
        )
    against = [row for row in rows if row["verdict"] == FARTHER]
    if against:
        worst = max(against, key=lambda row: row["frechet"])
        found.insert(
            0,
            f"strongest counter-example: {worst['arm']} on {worst['model']} at {worst['bits']} is "
            f"closer by {worst['frechet']:.3g} ({worst['frechet_low']:.3g} to "
            f"{worst['frechet_high']:.3g}, Frechet {worst['network']} distance)",
        )
    return found


def verdict(rows: Sequence[Run], made: int, wanted: int, base: str) -> str:
    """The verdict of the study: on the rows beside the arm ``base``, by both networks."""
    mine = [row["verdict"] for row in rows if row["arm"] == base]
    if made < wanted or not mine:
        return "not finished"
    if all(each == CLOSER for each in mine):
        return "holds"
    return "holds in part" if CLOSER in mine else "does not hold"


def added(rows: list[Run], about: str) -> dict[str, Any]:
    """The table of excesses."""
    columns = [column("arm", "Arm")]
    columns += [
        column(f"{network} {metric}", f"{words}, {title}", None, SET_METRICS[metric].better)
        for network, title in TITLES.items()
        for metric, words in METRICS.items()
    ]
    return {
        "title": "What quantization adds: values minus the float model's",
        "note": about,
        "group": ["model", "bits"],
        "columns": [*columns, column("paired_median", "Median paired error", 5, "lower")],
        "rows": rows,
    }


def between(rows: list[Run], arm: str) -> dict[str, Any]:
    """The table of differences."""
    return {
        "title": f"{arm} minus other arms",
        "note": "Below zero, distances are smaller with it; above zero, precision and recall are "
        "larger. Closer and farther: by the intervals of both distances.",
        "group": ["model", "bits"],
        "columns": [
            column("arm", "Minus"),
            column("network", "Network"),
            column("verdict", "Verdict"),
            *(column(metric, words) for metric, words in METRICS.items()),
        ],
        "rows": rows,
    }


def absolute(ledger: Ledger, command: str) -> dict[str, Any]:
    """The table of values as they are."""
    rows = []
    for run in ledger.runs:
        row = {k: run[k] for k in ("model", "bits", "arm")} | {n: run[n] for n in names(run)}
        rows.append(row | {"command": again(run, command)})
    columns = [
        column(f"{network} {metric}", f"{words}, {title}", None, SET_METRICS[metric].better)
        for network, title in TITLES.items()
        for metric, words in METRICS.items()
    ]
    return {
        "title": "Values",
        "note": "Mostly those of the float model: compare excesses." + ledger.elsewhere(),
        "group": ["model"],
        "columns": [column("arm", "Arm"), column("bits", "Bits"), *columns],
        "rows": rows,
    }


def plots(rows: list[Run], arms: Sequence[str], bits: Sequence[str]) -> list[dict[str, Any]]:
    """Excess of the Frechet distances by bits, a plot for each model and network."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for network, title in TITLES.items():
            lines = []
            for hue, arm in enumerate(arms):
                mine = [row for row in rows if (row["model"], row["arm"]) == (model, arm)]
                if mine:
                    made = marks(arm, mine, f"{network} frechet", bits, "bits", hue)
                    lines.append(made | {"joined": False})
            found.append(
                {
                    "title": f"{model}: what quantization adds to the Frechet {title} distance",
                    "x": {"label": "bits of weights and activations", "words": list(bits)},
                    "y": {"label": "distance over the float model's"},
                    "points": True,
                    "lines": lines,
                }
            )
    return found
