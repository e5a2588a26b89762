"""LSQ with everything it can ask for, beside TDQ with the same.

    python studies/fair_lsq.py                              # goes on where it was
    python studies/fair_lsq.py --quick                      # fewer steps, images and seeds
    python studies/fair_lsq.py --model cats-ddpm --bits W4A4 --until 400
    python studies/fair_lsq.py --share 0/2                  # and 1/2 in another process

For each law the search (``halving.py``) goes over the network's rate, the rate of the scales
apart from it, the form of the step (raw, or learned by its logarithm), its start, and layers split
behind concatenations or whole: the arms of ``learners.py``. It chooses by the training loss of
seed 0. The best arm of each rung but the first is trained on the other seeds too, and compared by
the errors of its samples: ``verdicts.py`` has the rules, with time for TDQ or S1000 and without
for LSQ.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import tdquant as tdq
from contrasts import packed
from halving import Outcome, Rung, halving
from learned_tables import finals, picks, plots, ratios, searched
from learners import LAWS, Arm, Learners, arms_of
from ledger import Ledger, Run, conduct, parser, sentence
from protocol import MODELS, WORST, Subject, mse
from verdicts import HELPS, HURTS, OPEN, USELESS

WIDTHS = {"W4A4": (4, 4), "W3A3": (3, 3), "W8A4": (8, 4)}
KEYS = (
    "model", "bits", "law", "form", "start", "layers", "rate", "step_rate", "steps", "judged",
    "seed",
)  # fmt: skip
SETTINGS = {
    "batch": 16, "distill": 1.0, "ema": 0.98, "images": 64, "sampler_steps": 20, "calibration": 8,
    "items": 4096, "judged_from": 400, "rungs": [
        [20, 1, False], [80, 0.25, True], [400, 4, True], [2000, 2, False], [5000, 1, False],
    ],
}  # fmt: skip
QUICK = SETTINGS | {
    "images": 16, "sampler_steps": 10, "items": 1024, "judged_from": 160, "rungs": [
        [10, 1, False], [40, 0.25, True], [80, 4, True], [160, 2, False], [320, 1, False],
    ],
}  # fmt: skip
SEEDS = (0, 1, 2)
WALK = 11
"""Neighbours that a walk measures, about."""
PATIENCE = 2 * 3600
"""Seconds without a new run after which other shares are not waited for any longer."""

QUESTION = """\
With every rate, form and start of the step searched for both, does a scale that follows the
timestep train to a better model than one learned step (LSQ), and does that last as training goes
on?"""
CLAIM = """\
On CIFAR-10 at W4A4 the paper reports an FID of 4.48 for TDQ and 7.3 for LSQ, after 200,000 steps.
It names no search of LSQ's rates. Reported for the paper, not checked against it."""
COMMAND = "python studies/fair_lsq.py"


def rungs_of(settings: dict[str, Any], until: int | None = None) -> list[Rung]:
    """The stages of the search, those of at most ``until`` steps."""
    rungs = [Rung(*rung) for rung in settings["rungs"]]
    return [rung for rung in rungs if until is None or rung.steps <= until]


def told(ledger: Ledger, at: dict[str, Any], arm: Arm, steps: int) -> float | None:
    """The loss of an arm in the search as far as it is known; infinite if it diverged."""
    judged = steps >= ledger.settings["judged_from"]
    run = ledger.find(**at, **arm.words(), steps=steps, judged=judged, seed=0)
    if run is None:
        return None
    return math.inf if run["loss"] is None else run["loss"]


def outcomes(ledger: Ledger, model: str, bits: str, law: str) -> Iterator[Outcome]:
    """The rungs of a search that are in the file."""
    at = {"model": model, "bits": bits}
    rungs = rungs_of(ledger.settings)
    return halving(arms_of(law), rungs, partial(told, ledger, at), Arm.neighbours)


def make_runs(ledger: Ledger, args: argparse.Namespace) -> None:
    makers: dict[tuple[str, str], Learners] = {}

    def learners(model: str, bits: str) -> Learners:
        s = ledger.settings
        if (model, bits) not in makers:
            makers.clear()  # one at a time: answers of teachers are large
            subject = Subject(model, s["images"], s["sampler_steps"], s["items"])
            makers[model, bits] = Learners(subject, WIDTHS[bits], s)
        return makers[model, bits]

    def make(at: dict[str, Any], arm: Arm, steps: int, judge: bool, seed: int) -> Run | None:
        def run() -> Run:
            made = learners(**at)
            frozen, loss = made.trained(arm, steps, seed)
            if frozen is None:
                return {"loss": None}
            found = judged(made.subject, frozen) if judge else {}
            return {"loss": float(f"{loss:.4g}"), **found}

        key = {**at, **arm.words(), "steps": steps, "judged": judge, "seed": seed}
        return ledger.make(key, run)

    def measure(at: dict[str, Any], arm: Arm, steps: int) -> float | None:
        make(at, arm, steps, steps >= ledger.settings["judged_from"], 0)
        return told(ledger, at, arm, steps)

    def advanced(model: str, bits: str, rung: Rung, law: str) -> bool:
        """Whether a search has come to the end of a rung, and its best arm to all seeds."""
        rungs, at = rungs_of(ledger.settings, rung.steps), {"model": model, "bits": bits}
        # What is made again are the best arms, not the search for them.
        known = partial(told, ledger, at) if ledger.again else partial(measure, at)
        found = list(halving(arms_of(law), rungs, known, Arm.neighbours))
        if len(found) < len(rungs):
            return ledger.again
        if len(rungs) == 1:  # which only says what is worth more steps
            return True
        made = [make(at, found[-1].best, rung.steps, True, seed) for seed in args.seeds]
        return None not in made

    rungs = rungs_of(ledger.settings, args.until)
    left = [(m, b, r, w) for m in args.model for b in args.bits for r in rungs for w in args.law]
    if left:
        print(estimate(learners(*left[0][:2]), ledger.settings, left), flush=True)
    count, since = len(ledger.runs), time.monotonic()
    while left:
        left = [task for task in left if not advanced(*task)]
        if len(ledger.runs) > count:
            count, since = len(ledger.runs), time.monotonic()
        elif left and time.monotonic() - since > PATIENCE:
            raise SystemExit("runs of another share are missing, and nobody makes them")
        elif left:
            time.sleep(10)


def estimate(learners: Learners, settings: dict[str, Any], tasks: list[Any]) -> str:
    """How long the tasks take here if nothing of them is there, in words: from the time of a few
    steps.
    """
    arm = arms_of("LSQ")[0]
    learners.trained(arm, 2, 0)  # data, calibration
    began = time.perf_counter()
    learners.trained(arm, 8, 0)
    each = (time.perf_counter() - began) / 8
    total = 0
    for law in {law for *_, law in tasks}:
        arms = len(arms_of(law))
        for number, rung in enumerate(rungs_of(settings)):
            arms = len(rung.reached(range(arms), number == 0)) + WALK * rung.walk
            count = sum(task[2].steps == rung.steps and task[3] == law for task in tasks)
            total += count * rung.steps * (arms + len(SEEDS) - 1)
    return (
        f"a training step takes {each:.2f} s; {total} steps if nothing is there yet: about "
        f"{total * each / 3600:.1f} hours of one process"
    )


def judged(subject: Subject, frozen: Any) -> Run:
    """Errors of samples, run on integers where they hold exactly."""
    errors = mse(subject.pictures(tdq.compile(frozen, "onednn")), subject.exact).nan_to_num(WORST)
    values = {"mean": errors.mean(), "median": errors.median()}
    rounded = {name: float(f"{float(value):.3g}") for name, value in values.items()}
    return {**rounded, "errors": packed(errors)}


def tell(ledger: Ledger) -> None:
    """Tables of the comparison, of the picks and of the search, and what they say."""
    known: dict[tuple[str, str, int], dict[str, tuple[Outcome, list[Run]]]] = {}
    for model in MODELS:
        for bits in WIDTHS:
            for law in LAWS:
                for found in list(outcomes(ledger, model, bits, law))[1:]:
                    at = {"model": model, "bits": bits, "steps": found.steps}
                    runs = ledger.select(**at, **found.best.words(), judged=True)
                    known.setdefault(tuple(at.values()), {})[law] = found, runs
    rows = finals(known, COMMAND)
    wanted = 0 if ledger.settings != SETTINGS else len(MODELS) * (len(SETTINGS["rungs"]) - 1)
    core = [row for row in rows if row["pair"] == "TDQ over LSQ" and row["bits"] == "W4A4"]
    made = sum(row["seeds"] >= len(SEEDS) for row in core)
    verdicts = [row["verdict"] for row in core]
    if made < max(wanted, 1):
        verdict = "not finished"
    elif set(verdicts) == {HELPS}:
        verdict = "holds"
    else:
        verdict = "holds in part" if HELPS in verdicts else "does not hold"
    clauses = []
    for row in (row for row in rows if row["pair"] == "TDQ over LSQ"):
        clauses.append(
            f"{row['model']} {row['bits']}, {row['steps']} steps: {WORDS[row['verdict']]}, "
            f"{row['geometric']:.2f}x ({row['geometric_low']:.2f} to {row['geometric_high']:.2f}) "
            f"of LSQ's error, {row['loss_ratio']:.2f}x of its loss"
        )
    if made < wanted:
        clauses.append(f"{made} of {wanted} comparisons made")
    ledger.write(
        position=1.5,
        title="A fair LSQ: rates, forms and starts of both searched",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(clauses),
        verdict=verdict,
        command=COMMAND,
        tables=[
            ratios(rows, ledger.settings, ledger.elsewhere()),
            picks(known),
            searched(ledger.runs, ledger.settings["judged_from"]),
        ],
        figures=[], plots=plots(known), layers=[], samples=[],
    )  # fmt: skip


WORDS = {
    HELPS: "TDQ is better", HURTS: "TDQ is worse", USELESS: "TDQ is not better", OPEN: OPEN,
}  # fmt: skip
"""Verdicts, of TDQ over LSQ."""


def main() -> None:
    quick = "--quick" in sys.argv
    made = parser(
        __doc__, seeds=True, shared=True, model=list(MODELS), bits=list(WIDTHS), law=list(LAWS)
    )
    made.add_argument("--until", type=int, metavar="STEPS", help="no rung of more steps")
    made.add_argument(
        "--quick", action="store_true", help="40 minutes: into results/fair_lsq-quick.json"
    )
    made.set_defaults(bits=["W4A4"], law=["LSQ", "TDQ"], seeds=list(SEEDS))
    if quick:
        made.set_defaults(seeds=[0], name="fair_lsq-quick")
    arguments = made.parse_args()
    conduct(arguments, "fair_lsq", KEYS, QUICK if quick else SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
