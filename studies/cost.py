"""f. What it costs: a training step and a sampling call, for each kind of scale and backend.

    python studies/cost.py --threads 2                  # on a machine that does nothing else

Times are taken in turns, so that whatever else runs disturbs all alike, and are given as ratios to
the float model in the same process.
"""

import copy
import statistics
import time

import torch

import tdquant as tdq
from ledger import AGAIN, column, conduct, parser, sentence
from protocol import MODELS, Subject
from tdquant.lowering.backends import time_calls
from tdquant.training import DiffusionObjective
from tdquant.training.groups import parameter_groups

KINDS = ("static", "dynamic", "temporal", "table", "pact", "nipq")
BITS = {"W4A8": (4, 8), "W4A4": (4, 4), "W8A8": (8, 8)}
BACKENDS = ("reference", "onednn", "openvino")
KEYS = ("model", "work", "batch", "bits", "scale", "backend", "seed")
SETTINGS = {"rounds": 31, "training_batch": 32, "batches": [1, 32]}
QUESTION = """\
What does a scale that follows the timestep cost in training and in sampling?"""
CLAIM = """\
The paper argues that a temporal scale costs at inference what a static one does, since it is
computed ahead. The published code computes it in every call."""
COMMAND = "python studies/cost.py"
LIMIT, NEARLY = 1.01, 1.05
"""Of temporal over static calls: up to where the claim holds, and holds in part."""


def calibrated(subject, bits, scale):
    model = subject.quantized(tdq.Recipe(*BITS[bits], scale=scale, remedies=()))
    calls = list(subject.noised(8, 8, 0))
    tdq.calibrate(model, calls, estimator="mse", split=False, progress=False)
    return model


def training_steps(subject, settings):
    """A training step for each kind of scale at W4A4, taken in turns."""
    batch = settings["training_batch"]
    objective = DiffusionObjective(subject.pipe.scheduler)
    noised = objective.draw(
        torch.stack([subject.data[i] for i in range(batch)]), 0, 0, range(batch), "cpu"
    )
    models = {"float": copy.deepcopy(subject.pipe.unet)}
    models |= {kind: calibrated(subject, "W4A4", kind) for kind in KINDS}
    optimizers = {
        kind: torch.optim.AdamW(parameter_groups(model.train(), 1e-5), fused=True)
        for kind, model in models.items()
    }
    times = {kind: [] for kind in models}
    for _ in range(settings["rounds"] + 1):
        for kind, model in models.items():
            began = time.perf_counter()
            loss, _ = objective(model, noised)
            optimizers[kind].zero_grad()
            loss.backward()
            optimizers[kind].step()
            times[kind].append(time.perf_counter() - began)
    seconds = {
        ("float" if kind == "float" else "W4A4", kind, "eager"): statistics.median(found[1:])
        for kind, found in times.items()
    }
    return told(seconds)


def calls(subject, batch, settings):
    """A call for each width, kind of scale and backend, taken in turns."""
    rng = torch.Generator().manual_seed(0)
    example = (torch.randn(batch, *subject.pipe.shape, generator=rng), torch.tensor(500))
    models = {("float", "float", "eager"): subject.pipe.unet}
    for bits in BITS:
        for scale in ("static", "dynamic", "temporal"):
            frozen = tdq.freeze(calibrated(subject, bits, scale))
            for backend in BACKENDS if bits != "W4A4" else ("reference", "onednn"):
                if scale == "dynamic" and backend == "openvino":
                    continue  # constants only
                models[bits, scale, backend] = tdq.compile(frozen, backend, example=example)
    names = {" ".join(key): key for key in models}
    seconds = time_calls(
        {name: models[key] for name, key in names.items()}, example, runs=settings["rounds"]
    )
    return told({names[name]: value for name, value in seconds.items()})


def told(seconds):
    """A run for each time, with its ratio to the float model's."""
    base = seconds["float", "float", "eager"]
    return [
        {
            "bits": bits, "scale": scale, "backend": backend,
            "milliseconds": 1e3 * value, "ratio": value / base,
        }
        for (bits, scale, backend), value in seconds.items()
    ]  # fmt: skip


def make_runs(ledger, args):
    for name in args.model:
        subject = Subject(name, 1, 1, 64)
        key = {"model": name, "work": "training step", "batch": ledger.settings["training_batch"]}
        ledger.make_together(
            key | {"seed": 0}, lambda s=subject: training_steps(s, ledger.settings)
        )
        for batch in ledger.settings["batches"]:
            key = {"model": name, "work": "call", "batch": batch, "seed": 0}
            ledger.make_together(key, lambda s=subject, b=batch: calls(s, b, ledger.settings))
        tell(ledger)


def tell(ledger):
    rows = []
    for run in ledger.runs:
        row = {k: v for k, v in run.items() if k not in ("seed", "seconds")}
        row["command"] = (
            f"{COMMAND} --threads {ledger.machine['threads']} --model {run['model']} {AGAIN}"
        )
        rows.append(row)
    over, words = [], []
    for run in ledger.select(work="call", scale="temporal"):
        same = {k: run[k] for k in ("model", "batch", "bits", "backend")}
        static = ledger.find(work="call", scale="static", **same)
        if static:
            over.append(run["milliseconds"] / static["milliseconds"])
    for model in MODELS:
        step = {
            s: ledger.find(model=model, work="training step", scale=s)
            for s in ("static", "temporal")
        }
        if all(step.values()):
            words.append(
                f"{model}: a training step with temporal scales takes "
                f"{step['temporal']['ratio']:.2f}x of float's, with static ones "
                f"{step['static']['ratio']:.2f}x"
            )
        fast = [
            r
            for r in ledger.select(model=model, work="call", scale="temporal")
            if r["backend"] != "reference"
        ]
        if fast:
            best = min(fast, key=lambda r: r["ratio"])
            words.append(
                f"the fastest call {1 / best['ratio']:.2f}x float's speed ({best['bits']}, "
                f"{best['backend']}, batch {best['batch']})"
            )
    if over:
        words.append(
            f"temporal over static calls: {statistics.median(over):.3f} in the median, "
            f"{max(over):.3f} at most"
        )
    done = all(
        ledger.select(model=m, work="call", batch=b) for m in MODELS for b in SETTINGS["batches"]
    )
    if not done:
        verdict = "not finished"
    elif statistics.median(over) <= LIMIT:
        verdict = "holds"
    else:
        verdict = "holds in part" if statistics.median(over) <= NEARLY else "does not hold"
    ledger.write(
        position=6,
        title="What temporal scales cost",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(words),
        verdict=verdict,
        command=COMMAND + " --threads 2",
        tables=[
            {
                "title": "Time of a training step and of a call",
                "note": f"Median of {ledger.settings['rounds']} rounds, "
                f"{ledger.machine['threads']} threads; ratio to the float model in the same run.",
                "group": ["model", "work", "batch"],
                "columns": [
                    column("bits", "Bits"),
                    column("scale", "Scale"),
                    column("backend", "Backend"),
                    column("milliseconds", "ms", 1, "lower"),
                    column("ratio", "of float's", 2, "lower"),
                ],
                "rows": rows,
            }
        ],
        figures=[], plots=[], samples=[], layers=[],
    )  # fmt: skip


def main() -> None:
    arguments = parser(__doc__, model=MODELS).parse_args()
    conduct(arguments, "cost", KEYS, SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
