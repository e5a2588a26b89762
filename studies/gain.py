"""Where the gain lives: inputs by what a step that follows time saves at the model's output.

    python studies/gain.py                              # goes on where it was
    python studies/gain.py --model cats-ddpm --bits W8A5

Steps of least squared error are calibrated over time, and the judge of calibration
(``tdquant.calibration.judge``) gives the error at the output that each input's rounding causes
alone, with its curve and with its best single step. Errors of independent roundings add, so the
inputs with the largest savings, cumulated over the sum of all static errors, say how many inputs
have the gain. Calibration tries flat curves too, and keeps them where they are better.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import tdquant as tdq
from arms import Calibrations, recipe_bits
from ledger import AGAIN, Ledger, Run, column, conduct, parser, sentence
from protocol import Subject
from tdquant.layers.base import INPUT

MODELS = (
    "cats-ddpm", "cats-ldm", "score-fashion", "dit-robots", "unet-robots", "mlp-cats8", "dit-cats"
)  # fmt: skip
BITS = ("W8A8", "W8A5")
KEYS = ("model", "bits", "layer", "seed")
SETTINGS = {"trajectories": 16, "calibration_steps": 50, "calls": 32}
MOST = 0.9
"""Share of the gain whose inputs are counted."""
SHOWN = 8
"""Inputs of a model and width in the table."""

QUESTION = "How many inputs account for the gain of temporal scales, and which are they?"
CLAIM = """\
The paper gives every quantized layer a temporal scale, and reports that about 30 % of layers
barely depend on the timestep. Reported for the paper, not checked against it."""
COMMAND = "python studies/gain.py"


def inputs_of(model: str, bits: str, settings: dict[str, Any]) -> Iterator[Run]:
    """One run an input."""
    made = Calibrations(Subject(model, 1, 1), settings, 0)
    whole, seen = made.observed()
    recipe = tdq.Recipe(*recipe_bits(bits), "temporal", remedies=())
    quantized = tdq.quantize(copy.deepcopy(whole), recipe)
    tdq.calibrate(quantized, seen, estimator="mse", split=False, seed=0, progress=False)
    total = sum(seen.macs.values())
    for each in quantized.tdq.calibration.layers:
        layer = each.path.removesuffix(INPUT)
        numbers = {"error": each.error, "static": each.static_error, "spread": each.spread}
        rounded = {key: float(f"{value:.5g}") for key, value in numbers.items()}
        yield {"layer": layer, "seed": 0, **rounded, "macs": seen.macs.get(layer, 0) / total}


def make_runs(ledger: Ledger, args: argparse.Namespace) -> None:
    for model in args.model:
        for bits in args.bits:
            ledger.make_together(
                {"model": model, "bits": bits},
                lambda model=model, bits=bits: inputs_of(model, bits, ledger.settings),
            )
            tell(ledger)


def ranked(runs: list[Run]) -> tuple[list[Run], list[float]]:
    """Inputs of one model and width by what they save, and the cumulated savings as shares of the
    sum of all static errors.
    """
    runs = sorted(runs, key=lambda run: run["error"] - run["static"])
    whole = sum(run["static"] for run in runs)
    return runs, [x / whole for x in accumulate(run["static"] - run["error"] for run in runs)]


def needed(shares: list[float]) -> int:
    """How many inputs have MOST of the largest cumulated saving; 0 if nothing is saved."""
    top = max(shares)
    return next(i + 1 for i, s in enumerate(shares) if s >= MOST * top) if top > 0 else 0


def tell(ledger: Ledger) -> None:
    """Inputs by what they save."""
    rows, plots, words, most = [], [], [], []
    for model in MODELS:
        lines, parts = [], []
        for hue, bits in enumerate(BITS):
            found = ledger.select(model=model, bits=bits)
            if not found:
                continue
            inputs, shares = ranked(found)
            count = needed(shares)
            most.append(count > len(inputs) / 2)
            parts.append(f"{count} of {len(inputs)} at {bits} ({max(*shares, 0):.0%})")
            lines.append({"name": bits, "hue": hue, "x": list(range(len(shares) + 1)),
                          "y": [0.0, *(round(100 * s, 2) for s in shares)]})  # fmt: skip
            before = 0.0
            for run, share in list(zip(inputs, shares, strict=True))[:SHOWN]:
                rows.append({
                    "model": model, "bits": bits, "layer": run["layer"], "spread": run["spread"],
                    "saved": 100 * (share - before), "cumulated": 100 * share,
                    "macs": 100 * run["macs"],
                    "command": f"{COMMAND} --model {model} --bits {bits} {AGAIN}",
                })  # fmt: skip
                before = share
        if lines:
            words.append(f"{model} {', '.join(parts)}")
            plots.append({
                "title": f"{model}: what inputs save, cumulated",
                "x": {"label": "inputs, those that save most first"},
                "y": {"label": "saved, % of the static error at the output"},
                "lines": lines,
            })  # fmt: skip
    wanted = len(MODELS) * len(BITS)
    if len(most) < wanted:
        verdict = "not finished"
    else:
        verdict = "holds" if all(most) else "holds in part" if any(most) else "does not hold"
    s = ledger.settings
    head = f"Inputs that have {MOST:.0%} of the gain (and what all save of static steps' error): "
    ledger.write(
        position=5.5,
        title="Where the gain lives",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence([head + ", ".join(words)] if words else [], len(most), wanted),
        verdict=verdict,
        command=COMMAND,
        tables=[{
            "title": f"The {SHOWN} inputs that save most",
            "note": f"One seed of calibration on {s['trajectories']} trajectories of "
            f"{s['calibration_steps']} steps; errors at the output by calibration's judge, from "
            f"{s['calls']} calls. Move: the largest over the least step over time. Work: of the "
            "multiply-accumulates." + ledger.elsewhere(),
            "group": ["model", "bits"],
            "columns": [
                column("layer", "Input of"),
                column("saved", "Saved, % of the static error", 1),
                column("cumulated", "Cumulated, %", 1),
                column("spread", "Move", 2),
                column("macs", "Work, %", 1),
            ],
            "rows": rows,
        }],
        figures=[], plots=plots, layers=[], samples=[],
    )  # fmt: skip


def main() -> None:
    conduct(parser(__doc__, model=MODELS, bits=BITS).parse_args(), "gain", KEYS, SETTINGS,
            make_runs, tell)  # fmt: skip


if __name__ == "__main__":
    main()
