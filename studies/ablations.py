"""d. Ablations: what the parts of a temporal scale are worth.

    python studies/ablations.py                         # goes on where it was
    python studies/ablations.py --part depth --choice 1 --seeds 0

Each run trains the pixel model at W4A4 as studies/qat.py does, at the smaller of its two rates,
and changes one thing in the temporal scale: the depth or width of its network, how it sees time,
dropout, where it starts, a table instead of the network, or which layers get one at all. What is
far off wants the larger rate, so the network, a flat start, a table and a static step are trained
at that as well.
"""

from functools import partial

import tdquant as tdq
from ledger import FRECHET, column, conduct, parser, ratio, sentence, span
from protocol import Subject
from qat import SETTINGS as QAT
from qat import finished, observed
from tdquant.quantizers import activation_quantizers
from tdquant.scales import StaticScale, TemporalScale

CHOICES = {
    "published form": {"4 layers of 64, Fourier": {}},
    "depth": {str(n): {"temporal": {"depth": n}} for n in (1, 2, 3, 5)},
    "width": {str(n): {"temporal": {"hidden": n}} for n in (8, 16, 256)},
    "encoding": {name: {"temporal": {"encoding": name}} for name in ("time", "log-snr")},
    "dropout": {"0.2": {"temporal": {"dropout": 0.2}}},
    "start": {
        "flat, at the mse step": {"start": "flat"},
        "flat, at the min-max step": {"start": "flat", "estimator": "minmax"},
        "fitted to min-max": {"estimator": "minmax"},
    },
    "law": {"table (S1000)": {"scale": "table"}, "static (LSQ)": {"scale": "static"}},
    "share": {f"{share:.0%}": {"share": share} for share in (0.1, 0.3, 0.6)},
    "larger rate": {
        "published form, 1e-3": {"rate": 1e-3},
        "flat, at the mse step, 1e-3": {"start": "flat", "rate": 1e-3},
        "table (S1000), 1e-3": {"scale": "table", "rate": 1e-3},
        "static (LSQ), 1e-3": {"scale": "static", "rate": 1e-3},
    },
}
KEYS = ("part", "choice", "seed")
VALUES = ("frechet", "paired_mse", "paired_median", "loss")
SETTINGS = {**QAT, "rate": 3e-4, "bits": [4, 4], "model": "cats-ddpm"}
QUESTION = """\
How much do depth, width, the encoding of time, dropout, the start, the network itself and the
share of temporal layers matter?"""
CLAIM = """\
The paper reports four layers as best, and a directly learned table as worse than the network.
Reported for the paper, not checked against it."""
COMMAND = "python studies/ablations.py"
NOTABLE = 1.1
"""A ratio from which the summary names the choice."""
WORSE = 1.02
"""A ratio from which a choice counts as worse, and its inverse as better."""


def trained(
    subject,
    observations,
    seed,
    settings,
    scale="temporal",
    temporal=None,
    estimator="mse",
    start="fitted",
    share=1.0,
    rate=None,
):
    """The frozen moving average, and the loss of the last fifth of the steps."""
    recipe = tdq.Recipe(*settings["bits"], scale=scale, temporal=temporal or {})
    model = subject.quantized(recipe)
    report = tdq.calibrate(
        model, observations, estimator=estimator, split=False, seed=seed, progress=False
    ).tdq.calibration
    quantizers = dict(activation_quantizers(model))
    gain = {c.path: c.static_error - c.error for c in report.layers}
    static = sorted(gain, key=gain.__getitem__)[: round((1 - share) * len(gain))]
    if start == "flat" or static:
        flat = subject.quantized(tdq.Recipe(*settings["bits"], scale="static"))
        tdq.calibrate(
            flat, observations, estimator=estimator, split=False, seed=seed, progress=False
        )
        for path, q in activation_quantizers(flat):
            scale_there = quantizers[path].scale
            if path in static:
                quantizers[path].scale = StaticScale.from_step(q.scale.step.item(), q.grid)
                quantizers[path].clock.invalidate_scale_cache()
            elif start == "flat" and isinstance(scale_there, TemporalScale):
                scale_there.reset(q.scale.step.item())
    return finished(subject, model, settings, rate or settings["rate"], seed)


def make_runs(ledger, args):
    s = ledger.settings
    subject = Subject(s["model"], s["images"], s["sampler_steps"], s["items"])
    seen = {}

    def run(seed, options):
        if seed not in seen:
            seen[seed] = observed(subject, s, seed)
        frozen, loss = trained(subject, seen[seed], seed, s, **options)
        return {**subject.judge(frozen), "loss": loss}

    for seed in args.seeds:
        for part, choices in CHOICES.items():
            for choice, options in choices.items():
                key = {"part": part, "choice": choice, "seed": seed}
                if part not in args.part or choice not in args.choice:
                    continue
                ledger.make(key, partial(run, seed, options))
                tell(ledger)


def tell(ledger):
    rows = ledger.over_seeds(ledger.runs, VALUES, COMMAND)
    published = {"part": "published form"}
    for row in rows:
        key = {"part": row["part"], "choice": row["choice"]}
        row["ratio"] = ratio(ledger.runs, "frechet", published, key)
    wanted = 3 * sum(map(len, CHOICES.values()))
    by_part = {
        part: {r["choice"]: r["ratio"] for r in rows if r["part"] == part} for part in CHOICES
    }
    clauses = [
        f"{part} {span(found.values())}"
        + (f" ({max(found, key=found.__getitem__)})" if max(found.values()) > NOTABLE else "")
        for part, found in by_part.items()
        if found and all(found.values()) and part != "published form"
    ]
    done = len(ledger.runs) >= wanted
    depth, table = by_part["depth"], by_part["law"].get("table (S1000)")
    if not done or not table:
        verdict = "not finished"
    else:
        seen = [all(value > WORSE for value in depth.values()), table > WORSE]
        verdict = "holds" if all(seen) else "holds in part" if any(seen) else "does not hold"
    ledger.write(
        position=4,
        title="Ablations: what the parts of a temporal scale are worth",
        question=QUESTION,
        claim=CLAIM,
        measured="Distance over that of the published form (4 layers of 64, Fourier features, no "
        f"dropout, fitted start): {sentence(clauses, len(ledger.runs), wanted)}",
        verdict=verdict,
        command=COMMAND,
        tables=[
            {
                "title": "One change at a time, W4A4, cats-ddpm",
                "note": f"{ledger.settings['steps']} training steps, at a rate of "
                f"{ledger.settings['rate']:g} where none is named. Mean over seeds; below it the "
                f"least and largest.{ledger.elsewhere()}",
                "group": ["part"],
                "columns": [
                    column("choice", "Choice"),
                    column("seeds", "Seeds"),
                    FRECHET,
                    column("ratio", "of the published form's", 2, "lower"),
                    column("paired_mse", "Paired MSE", 4, "lower"),
                    column("loss", "Distillation loss", 4, "lower"),
                ],
                "rows": rows,
            }
        ],
        figures=[], plots=[], samples=[], layers=[],
    )  # fmt: skip


def main() -> None:
    every = [choice for choices in CHOICES.values() for choice in choices]
    axes = {"part": list(CHOICES), "choice": list(dict.fromkeys(every))}
    arguments = parser(__doc__, seeds=True, shared=True, **axes).parse_args()
    conduct(arguments, "ablations", KEYS, SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
