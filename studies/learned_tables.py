"""Tables and plots of laws that were searched alike (``fair_lsq.py``)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from contrasts import row, unpacked
from halving import Outcome
from learners import Arm
from ledger import AGAIN, Run, column
from verdicts import compared

Found = Mapping[tuple[str, str, int], Mapping[str, tuple[Outcome, list[Run]]]]
"""By model, bits and steps, and by law: the search, and runs of its best arm on all seeds."""

ARM = [
    column("form", "Step"),
    column("start", "Start"),
    column("layers", "Layers"),
    column("rate", "Rate"),
    column("step_rate", "Scales"),
]
RESULTS = [
    column("loss", "Loss", 4, "lower"),
    column("mean", "Mean error", 4, "lower"),
    column("median", "Median error", 4, "lower"),
]

PAIRS = (("TDQ", "LSQ"), ("S1000", "LSQ"), ("TDQ", "S1000"))


def finals(found: Found, command: str) -> list[Run]:
    """A row for each pair of laws, by the errors of samples on the seeds that both have."""
    rows = []
    for (model, bits, steps), laws in found.items():
        for law, base in PAIRS:
            if law not in laws or base not in laws:
                continue
            ours, others = (
                {run["seed"]: run for run in laws[name][1] if "errors" in run}
                for name in (law, base)
            )
            both = sorted(ours.keys() & others.keys())
            if not both:
                continue
            errors, without = (
                torch.stack([unpacked(runs[seed]["errors"]) for seed in both])
                for runs in (ours, others)
            )
            losses = [statistics.mean(r[s]["loss"] for s in both) for r in (ours, others)]
            flags = f'--model "{model}" --bits "{bits}" --until {steps} --law "{law}" "{base}"'
            words = {"model": model, "bits": bits, "steps": steps, "pair": f"{law} over {base}"}
            about = {"loss_ratio": round(losses[0] / losses[1], 4)}
            about |= {"loss": losses[0], "base_loss": losses[1]}
            about |= {"command": f"{command} {flags} {AGAIN}"}
            rows.append(row(compared(errors, without), **words, **about))
    return rows


def ratios(rows: list[Run], settings: Mapping[str, Any], elsewhere: str) -> dict[str, Any]:
    """The table of ``finals``."""
    return {
        "title": "The best arm of one law over the best of another",
        "note": f"Squared error of {settings['images']} images of {settings['sampler_steps']} "
        "steps against the float model's from the same noise; intervals of 95 %, over images and "
        "seeds. Losses are of distillation, the last fifth of the steps, mean over seeds. "
        "'Time' is the first law's; a verdict takes three seeds." + elsewhere,
        "group": ["model", "bits"],
        "columns": [
            column("pair", "Laws"),
            column("steps", "Optimizer steps"),
            column("verdict", "Verdict"),
            column("geometric", "Ratio of geometric means", 3, "lower"),
            column("mean", "of means", 3),
            column("median", "of medians", 3),
            column("loss_ratio", "of losses", 3),
            column("threshold", "Threshold", 2),
            column("seeds", "Seeds"),
        ],
        "rows": rows,
    }


def picks(found: Found) -> dict[str, Any]:
    """Which arm was the best of each law, and what it gave."""
    rows = []
    for (model, bits, steps), laws in found.items():
        for outcome, runs in laws.values():
            arm: Arm = outcome.best
            made = [run for run in runs if "errors" in run]
            made_row: Run = {"model": model, "bits": bits, "steps": steps, **arm.words()}
            for value in ("loss", "mean", "median"):
                values = [run[value] for run in made]
                if values:
                    made_row[value] = statistics.mean(values)
                if len(values) > 1:
                    ends = {"low": min(values), "high": max(values)}
                    made_row |= {f"{value}_{end}": found for end, found in ends.items()}
            inside = outcome.walked and arm.inside
            made_row |= {"arms": len(outcome.losses), "inside": "yes" if inside else "-"}
            made_row |= {"seeds": len(made)}
            rows.append(made_row)
    return {
        "title": "The best arms by training loss",
        "note": "Chosen on seed 0. Rate: the network's; scales: over it. Inside: all neighbours "
        "on both ladders of rates were measured with as many steps, and are worse.",
        "group": ["model", "bits"],
        "columns": [
            column("law", "Law"),
            column("steps", "Optimizer steps"),
            *ARM,
            column("inside", "Inside"),
            column("arms", "Arms"),
            *RESULTS,
            column("seeds", "Seeds"),
        ],
        "rows": rows,
    }


def searched(runs: list[Run], judged_from: int) -> dict[str, Any]:
    """Every arm that was measured, least loss first.

    Arguments:
        runs: All runs.
        judged_from: Steps from which the search judges samples too; the best of fewer steps are
            trained once more for that.
    """
    rows = [
        {k: v for k, v in run.items() if k not in ("errors", "seconds")}
        for run in runs
        if run["seed"] == 0 and run["judged"] == (run["steps"] >= judged_from)
    ]
    rows.sort(
        key=lambda r: (
            r["model"], r["bits"], r["steps"], r["law"], r["loss"] is None, r["loss"] or 0.0
        )
    )  # fmt: skip
    return {
        "title": "The search",
        "note": "Seed 0. Without a loss: training diverged.",
        "group": ["model", "bits", "steps", "law"],
        "columns": [
            *ARM,
            *RESULTS,
        ],
        "rows": rows,
    }


def plots(found: Found) -> list[dict[str, Any]]:
    """Loss of the best arm of each law by optimizer steps."""
    made = []
    for model, bits in dict.fromkeys(key[:2] for key in found):
        steps = sorted(key[2] for key in found if key[:2] == (model, bits))
        lines = []
        for hue, law in enumerate(("LSQ", "TDQ", "S1000")):
            laws = {n: found[model, bits, n] for n in steps}
            those = {n: laws[n][law][1] for n in steps if law in laws[n]}
            losses = [[run["loss"] for run in runs if run["loss"]] for runs in those.values()]
            if not those:
                continue
            lines.append(
                {
                    "name": law, "hue": hue,
                    "x": list(those),
                    "y": [statistics.mean(values) for values in losses],
                    "low": [min(values) for values in losses],
                    "high": [max(values) for values in losses],
                }
            )  # fmt: skip
        made.append(
            {
                "title": f"{model} at {bits}: loss of the best arm by optimizer steps",
                "x": {"label": "optimizer steps", "log": True},
                "y": {"label": "distillation loss", "log": True},
                "lines": lines,
                "note": "Mean over seeds; whiskers from the least to the largest.",
            }
        )
    return made
