"""The paper's claims in parts, each judged on each model by the runs that the other studies made.

    python studies/claims.py            # after the other studies: makes no runs of its own

``claim_evidence.py`` has the comparisons, ``claim_rules.py`` the rules. Distances are told as what
is added to the float model's, in shares of it: the excess of one arm minus that of the other. A
part without runs on a model is left out there, and the page of the report says *not run*.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arms import STATIC, TIME, WITHOUT
from claim_evidence import (
    Found,
    above,
    calibrated,
    called,
    contrasted,
    grown,
    judged,
    latent,
    middle,
    shaped,
    still,
    trained,
)
from claim_rules import FAILS, HOLDS, OPEN, Evidence, decided
from ledger import Ledger, conduct, parser, sentence

EMBEDDED = ("cats-ddpm", "cats-ldm")
HELD_OUT = ("score-fashion", "dit-robots", "unet-robots")
CHOSEN_ON = (*EMBEDDED, "mlp-cats8", "dit-cats")
MODELS = (*EMBEDDED, *HELD_OUT, *CHOSEN_ON[len(EMBEDDED) :])
"""Pixel and latent model; then held-out ones; then small ones that defaults were chosen on."""

QUESTION = "Which parts of the paper's claims hold, on which models?"
COMMAND = "python studies/claims.py"
CLAIM = """\
Eight claims: activations follow the timestep; training with temporal scales beats LSQ, and NIPQ
and PACT; input-dynamic scales lie between; a network of four layers is the best form; temporal
scales improve calibration too; with fewer sampler steps TDQ loses no more than float does; calls
take as long as with static scales.
Reported for the paper, not checked against it."""


@dataclass(frozen=True)
class Part:
    """A part of a claim.

    Attributes:
        claim: Number and words of the claim.
        name: Of the part.
        rule: What it says of the number, in words.
        evidence: Comparisons on a model; empty if there are no runs.
        models: Models that it is about.
    """

    claim: str
    name: str
    rule: str
    evidence: Callable[[str], Found]
    models: tuple[str, ...] = MODELS


FOLLOW = "1. Activations follow the timestep"
TRAIN = "2. Training with temporal scales beats LSQ"
OTHERS = "3. It beats NIPQ and PACT"
BETWEEN = "4. Input-dynamic scales lie between LSQ and TDQ"
FORM = "5. A network of four layers is the best form"
CALIBRATE = "6. Temporal scales improve calibration too"
STEPS = "7. With fewer sampler steps, TDQ loses no more than float does"
COST = "8. A call takes as long as with static scales"
LSQ = ("LSQ", "LSQ, judged start")
FEW, ERROR = "excess smaller by 5 % of float's distance or more", "error at most 0.95x"
WIDTHS = ("W8A8", "W4A8", "W8A4", "W4A4", "W3A3")

PARTS = (
    Part(FOLLOW, "abs(r) > 0.5 in most inputs", "share above 50 %", above(0.5, 0.5)),
    Part(FOLLOW, "abs(r) > 0.7 in 39 % or more", "share above 39 %", above(0.7, 0.39)),
    Part(FOLLOW, "about 30 % hardly depend on it", "share of 20 to 40 %", still),
    Part(FOLLOW, "these are in the middle blocks", "share above 50 %", middle),
    Part(FOLLOW, "fewer inputs in the latent model",
         "a smaller share above 0.5 than cats-ddpm's", latent, ("cats-ldm",)),
    *(Part(TRAIN, f"distance, {bits}", FEW, trained("TDQ", LSQ, (bits,))) for bits in WIDTHS),
    Part(TRAIN, "paired error, W4A4", ERROR, trained("TDQ", LSQ, ("W4A4",), "paired_median")),
    Part(TRAIN, "paired error, W3A3", ERROR, trained("TDQ", LSQ, ("W3A3",), "paired_median")),
    Part(OTHERS, "NIPQ, W4A4", FEW, trained("TDQ", ("NIPQ",), ("W4A4",))),
    Part(OTHERS, "PACT, W4A4", FEW, trained("TDQ", ("PACT",), ("W4A4",))),
    Part(OTHERS, "both, all widths", FEW, trained("TDQ", ("NIPQ", "PACT"), WIDTHS)),
    Part(BETWEEN, "TDQ beats them, W4A4", FEW, trained("TDQ", ("input-dynamic",), ("W4A4",))),
    Part(BETWEEN, "they beat LSQ, W4A4", FEW, trained("input-dynamic", LSQ, ("W4A4",))),
    Part(FORM, "it beats a table (S1000), W4A4", FEW, trained("TDQ", ("S1000",), ("W4A4",))),
    Part(FORM, "it beats other depths, W4A4", FEW, shaped("depth")),
    *(
        Part(CALIBRATE, f"paired error, {bits}", ERROR, calibrated(bits))
        for bits in ("W8A8", "W8A6", "W8A5", "W8A4", "W4A8")
    ),
    Part(CALIBRATE, "Frechet distances of 5,000 images", FEW, judged(("frechet",))),
    Part(CALIBRATE, "kernel distances of 5,000 images", FEW, judged(("kid",))),
    *(
        Part(
            CALIBRATE, f"s(t) instead of two inputs in float, {bits}", ERROR,
            contrasted(bits, (STATIC, TIME), ("2 most moving in float", WITHOUT)),
        )
        for bits in ("W8A8", "W8A5")
    ),
    Part(STEPS, "TDQ's ratio to float, W4A4", "grows by at most 1.15x", grown("TDQ", "float")),
    Part(STEPS, "and less than LSQ's, W4A4", "at most 0.95x of LSQ's", grown("TDQ", "LSQ")),
    Part(COST, "calls", "temporal at most 1.01x of static", called),
)  # fmt: skip
"""Every part, in the order of the claims."""


Judged = tuple[Part, dict[str, tuple[str, Evidence, int]]]


def judge() -> list[Judged]:
    """Every part with its verdict on each model that has runs, the comparison that says most
    against it there, and their number.
    """
    found = []
    for part in PARTS:
        evidence = {model: part.evidence(model) for model in part.models}
        found.append((part, {m: (*decided(e), len(e)) for m, e in evidence.items() if e}))
    return found


def row(part: Part, cells: dict[str, tuple[str, Evidence, int]]) -> dict[str, Any]:
    """A row of the matrix; a cell is None where the part says nothing of a model, and missing
    where there are no runs.
    """
    silent: dict[str, Any] = {model: None for model in MODELS if model not in part.models}
    shown = {model: cell(*found) for model, found in cells.items()}
    return {
        "group": part.claim, "name": part.name, "rule": part.rule, "cells": silent | shown,
    }  # fmt: skip


def cell(verdict: str, worst: Evidence, count: int) -> dict[str, Any]:
    """A verdict with the comparison that says most against the part."""
    ends = {key: getattr(worst, key) for key in ("value", "low", "high")}
    numbers = {key: float(f"{x:.4g}") for key, x in ends.items() if math.isfinite(x)}
    return {"verdict": verdict, "what": worst.what, "count": count, **numbers}


def told(found: list[Judged]) -> list[str]:
    """Clauses on the verdicts, negative ones first, with the strongest counter-example."""
    cells = [(p, model, *each) for p, models in found for model, each in models.items()]
    counts = Counter(verdict for _, _, verdict, *_ in cells)
    against = [(p, model, worst) for p, model, verdict, worst, _ in cells if verdict == FAILS]
    clauses = []
    if against:
        where = ", ".join(f"{p.claim[0]} ({p.name}; {model})" for p, model, _ in against)
        p, model, worst = max(against, key=lambda each: each[2].against)
        clauses = [
            f"{counts[FAILS]} of {len(cells)} cells do not hold: {where}",
            f"strongest counter-example: {p.claim[0]}, {p.name}, on {model}, {worst.value:.3g} "
            f"({worst.low:.3g} to {worst.high:.3g})",
        ]
    clauses += [f"{counts[OPEN]} not decided"] * bool(counts[OPEN])
    clauses += [f"{counts[HOLDS]} hold"] * bool(counts[HOLDS])
    missing = sum(len(p.models) - len(models) for p, models in found)
    return [*clauses, f"{missing} not run"]


def make_runs(book: Ledger, arguments: argparse.Namespace) -> None:
    """Other studies made them."""


def tell(book: Ledger) -> None:
    """The matrix, and what it says."""
    found = judge()
    verdicts = {verdict for _, models in found for verdict, *_ in models.values()}
    if not verdicts:
        verdict = "not finished"
    elif HOLDS in verdicts:
        verdict = "holds" if verdicts == {HOLDS} else "holds in part"
    else:
        verdict = "does not hold"
    book.write(
        position=0,
        title="The paper's claims, part by part",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(told(found)),
        verdict=verdict,
        command=COMMAND,
        machine=None,
        matrix={
            "title": "Parts of claims by model",
            "note": "A part holds, or does not hold, if its whole 95 % interval is on one side of "
            "the bound. Otherwise it is not decided, as is everything that was trained only "
            "once. Intervals are over training or calibration seeds; in claim 1 over inputs; in "
            "claim 8 over calls; on small models, and for distances of 5,000 images, over images "
            "and seeds or subsets of images. They are not corrected for multiple comparisons. "
            "The number is from the comparison least favorable to the part: for distances, the "
            "difference of two excesses divided by float's distance; for errors, the ratio of "
            "medians, on small models of geometric means. Defaults were "
            f"chosen on {', '.join(CHOSEN_ON)}; {', '.join(HELD_OUT)} are held out.",
            "columns": list(MODELS),
            "rows": [row(*each) for each in found],
        },
        tables=[], figures=[], plots=[], layers=[], samples=[],
    )  # fmt: skip


def main() -> None:
    conduct(parser(__doc__).parse_args(), "claims", ("seed",), {}, make_runs, tell)


if __name__ == "__main__":
    main()
