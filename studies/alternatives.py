"""What time adds to what one would do otherwise, on models that defaults were not chosen on too.

    python studies/alternatives.py                              # goes on where it was
    python studies/alternatives.py --quick                      # one width and seed, fewer images
    python studies/alternatives.py --model cats-ddpm --bits W8A5 --arm "static" --seeds 0

Arms are what a practitioner would do without temporal scales (``arms.py``): static steps, the most
moving inputs with 8 bits or in float, splits, channel factors, input-dynamic steps, and tdquant's
default with static scales. Each is measured with s(t) and without, everything else equal: weights
of 8 bits, calls, noise, and seeds of calibration. ``verdicts.py`` has the rules.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from arms import ARMS, TABLE, TIME, WITHOUT, Calibrations
from contrast_tables import plots, ratios, summary
from contrasts import added, beside_best, errors_of, packed, replaced, sorted_rows
from ledger import Ledger, Run, column, conduct, grid, parser, sentence
from protocol import Subject
from verdicts import HELPS, VERDICTS

WIDTHS = ("W8A8", "W8A6", "W8A5", "W8A4")
FLOAT_WEIGHTS = ("A8", "A6", "A5", "A4")


@dataclass(frozen=True)
class About:
    """A model, and what is asked of it.

    Attributes:
        role: Whether defaults were chosen on it.
        bits: Widths that it is measured at.
        core: Only the arms of ``Arm.core``, for costly models.
        split: It has concatenations.
        tokens: It has linear layers over tokens.
        wanted: The study is not finished without it.
    """

    role: str
    bits: tuple[str, ...] = WIDTHS
    core: bool = False
    split: bool = False
    tokens: bool = False
    wanted: bool = True


CHOSEN_ON, HELD_OUT = "defaults chosen on it", "held out"
MODELS = {
    "score-fashion": About(HELD_OUT, split=True),
    "mlp-cats8": About(CHOSEN_ON),
    "dit-robots": About(HELD_OUT, ("W8A5", "W8A8"), core=True, tokens=True),
    "dit-cats": About(CHOSEN_ON, ("W8A5", "W8A8"), core=True, tokens=True),
    "unet-robots": About(HELD_OUT, ("W8A5",), core=True, split=True, tokens=True),
    "cats-ddpm": About(
        CHOSEN_ON, ("W8A5",), core=True, split=True, tokens=True, wanted=False
    ),
    "cats-ldm": About(CHOSEN_ON, ("W8A5",), core=True, split=True, tokens=True, wanted=False),
}  # fmt: skip

KEYS = ("model", "bits", "arm", "time", "seed")
SETTINGS = {
    "images": 64, "sampler_steps": 25, "trajectories": 16, "calibration_steps": 50, "calls": 32,
}  # fmt: skip
QUICK = SETTINGS | {
    "images": 16, "sampler_steps": 10, "trajectories": 4, "calibration_steps": 20, "calls": 8,
}  # fmt: skip
QUESTION = "What do temporal scales add to what one would do without them?"
CLAIM = """\
The paper sets temporal scales beside static and input-dynamic ones, and names no arm that leaves
the few inputs that move in more bits or in float, splits or rescales them. Reported for the paper,
not checked against it."""
COMMAND = "python studies/alternatives.py"


def arms_of(about: About, bits: str) -> list[str]:
    """The arms that say something of a model at these bits."""
    return [
        name
        for name, arm in ARMS.items()
        if (arm.core or not about.core)
        and (about.split or name != "split shortcuts")
        and (about.tokens or not arm.tokens)
        and not (arm.top and arm.top[2] == 8 and bits.endswith("A8"))
    ]


def plans(models, bits=None, arms=tuple(ARMS), times=(WITHOUT, TIME, TABLE), seeds=(0, 1, 2)):
    """The runs asked for, arms that all models have first; those of one model stay together."""
    found = []
    for name in models:
        about = MODELS[name]
        for key in grid(bits=bits or about.bits, seed=seeds):
            asked = [arm for arm in arms_of(about, key["bits"]) if arm in arms]
            for arm in asked:
                forms = [time for time in ARMS[arm].times if time in times]
                found += [{"model": name, **key, "arm": arm, "time": time} for time in forms]
    return sorted(found, key=lambda k: (list(models).index(k["model"]), not ARMS[k["arm"]].core))


def make_runs(ledger: Ledger, args: argparse.Namespace) -> None:
    s = ledger.settings
    subject, prepared = None, dict[int, Calibrations]()

    def run(model: str, bits: str, arm: str, time: str, seed: int) -> Run:
        nonlocal subject
        if subject is None or subject.name != model:
            subject = Subject(model, s["images"], s["sampler_steps"])
            prepared.clear()
        if seed not in prepared:
            prepared[seed] = Calibrations(subject, s, seed)
        frozen, about = prepared[seed].frozen(bits, arm, time)
        errors = subject.errors(frozen)
        mean, typical = float(errors.mean()), float(errors.double().log().mean().exp())
        values = {"mean": mean, "median": float(errors.median()), "geometric": typical}
        rounded = {name: float(f"{value:.3g}") for name, value in values.items()}
        return {**rounded, **about, "share": round(about["share"], 4), "errors": packed(errors)}

    for key in plans(args.model, args.bits, args.arm, args.time, args.seeds):
        ledger.make(key, lambda key=key: run(**key))


def tell(ledger: Ledger) -> None:
    """Tables of ratios, and what they say."""
    quick = ledger.settings != SETTINGS
    table = errors_of(ledger.runs)
    everything, instead, best = (
        sorted_rows([words(row) for row in rows(table)], place)
        for rows in (added, replaced, beside_best)
    )
    contrasts = [row for row in everything if row["verdict"] in VERDICTS]
    wanted = [] if quick else plans([name for name, about in MODELS.items() if about.wanted])
    made = sum(ledger.find(**key) is not None for key in wanted)
    counts = Counter(row["verdict"] for row in contrasts)
    if made < len(wanted) or not contrasts:
        verdict = "not finished"
    elif counts[HELPS] == len(contrasts):
        verdict = "holds"
    else:
        verdict = "holds in part" if counts[HELPS] else "does not hold"
    about = (
        f"{ledger.settings['images']} images of {ledger.settings['sampler_steps']} steps, squared "
        "error against the float model's from the same noise. Ratios below 1 are for time; "
        "intervals of 95 %, over images and seeds. A difference counts beyond the threshold, "
        "which is more than another seed makes."
    )
    ledger.write(
        position=7,
        title="Alternatives: what time adds to what one would do otherwise",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(summary(contrasts, instead, best), made, len(wanted)),
        verdict=verdict,
        command=COMMAND,
        tables=[
            ratios("An arm with s(t), over the same arm without", about, everything),
            ratios(
                "Static steps with s(t), over another arm without time",
                "Time in the place of the alternative.", instead,
            ),
            ratios(
                "tdquant's default, over the best arm without time",
                "The best by geometric mean on the same images, whatever it costs: this choice is "
                "in its favour.", best,
            ),
            absolute(ledger),
        ],
        figures=[], plots=plots(contrasts), layers=[], samples=[],
    )  # fmt: skip


def words(row: Run) -> Run:
    """A row with the model's role and its command."""
    arm = f' --arm "{row["arm"]}"'
    command = f'{COMMAND} --model "{row["model"]}" --bits "{row["bits"]}"{arm} --again'
    label = row["arm"] + (f", {TABLE}" if row["time"] == TABLE else "")
    return {**row, "role": MODELS[row["model"]].role, "label": label, "command": command}


def place(row: Run) -> tuple[int, int]:
    """Models and widths in their order."""
    bits = (*WIDTHS, *FLOAT_WEIGHTS)
    return list(MODELS).index(row["model"]), bits.index(row["bits"])


def absolute(ledger: Ledger) -> dict[str, Any]:
    """Errors of every arm, and what it costs."""
    values = ("mean", "median", "geometric", "share", "moving")
    rows = ledger.over_seeds(ledger.runs, values, COMMAND)
    for row in rows:
        row["role"] = MODELS[row["model"]].role
        row["label"] = row["arm"] + (f" + {row['time']}" if row["time"] != WITHOUT else "")
        shares = [f"{key}{end}" for key in ("share", "moving") for end in ("", "_low", "_high")]
        row |= {key: 100 * row[key] for key in shares if key in row}
    rows.sort(key=lambda row: (place(row), row["geometric"]))
    return {
        "title": "Errors",
        "note": "Mean over seeds; below it the least and largest. Inputs that stay wider than the "
        "width says are told by their share of the multiply-accumulates. Calibration tries flat "
        "curves too: with s(t), not all inputs' steps follow time." + ledger.elsewhere(),
        "group": ["model", "role", "bits"],
        "columns": [
            column("label", "Arm"),
            column("geometric", "Geometric mean", None, "lower"),
            column("median", "Median", None, "lower"),
            column("mean", "Mean", None, "lower"),
            column("share", "Wider inputs, %", 1),
            column("moving", "Steps over time, %", 0),
            column("seeds", "Seeds"),
        ],
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    quick = "--quick" in sys.argv
    made = parser(
        __doc__, seeds=True, shared=True, model=list(MODELS), bits=[*WIDTHS, *FLOAT_WEIGHTS],
        arm=list(ARMS), time=[WITHOUT, TIME, TABLE],
    )  # fmt: skip
    wanted = [name for name, about in MODELS.items() if about.wanted]
    made.add_argument(
        "--quick", action="store_true", help="40 minutes: into results/alternatives-quick.json"
    )
    made.set_defaults(model=wanted, bits=None)
    if quick:
        made.set_defaults(seeds=[0], bits=["W8A5"], name="alternatives-quick")
    arguments = made.parse_args()
    conduct(arguments, "alternatives", KEYS, QUICK if quick else SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
