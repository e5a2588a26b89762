"""Quantization-aware training of the embedded pixel model under every scale law, equal budgets.

    python benchmarks/qat.py                    # resumes: a finished row is not run again
    python benchmarks/qat.py --only W4A4 --seeds 0 --steps 50 --images 64

Every run starts from the same float weights, calibrates on the same noised images and trains for
the same number of steps; the averaged model is frozen and sampled from the same noise. The
distance is Frechet on EfficientNet-Lite0 features to 5,000 held-out cats, the paired error is
against the float model. Rows go to benchmarks/results/qat.json as they are made.
"""

import argparse
import copy
import json
import statistics
import time

import torch

import tdquant as tdq
from record import RESULTS, table, write
from tdquant.data import loader
from tdquant.metrics import FrechetDistance
from tdquant.train import DiffusionObjective

METHODS: dict[str, dict] = {
    "LSQ, published rates": {"scale": "static", "rates": "published"},
    "LSQ, equal rates": {"scale": "static", "rates": "equal"},
    "TDQ, published rates": {"scale": "temporal", "rates": "published"},
    "TDQ, equal rates": {"scale": "temporal", "rates": "equal"},
    "S1000": {"scale": "table", "rates": "equal"},
    "input-dynamic": {"scale": "dynamic", "rates": "equal"},
    "PACT": {"scale": "pact", "rates": "equal"},
    "NIPQ": {"scale": "nipq", "rates": "equal"},
    "TDQ, dropout 0.2": {"scale": "temporal", "rates": "equal", "temporal": {"dropout": 0.2}},
}
BITS = {"W4A4": (4, 4), "W3A3": (3, 3)}
CALIBRATION = 32


def observed(pipe, data, batch, seed):
    """What every activation of the float model sees on noised training images."""
    objective = DiffusionObjective(pipe.scheduler)
    images = iter(loader(data, batch, seed=seed))
    drawn = [
        objective.draw(next(images), seed + 1, k, range(batch), "cpu") for k in range(CALIBRATION)
    ]
    model = tdq.quantize(copy.deepcopy(pipe.unet), tdq.Recipe(), verbose=False)
    return tdq.observe(model, [(b.x_t, b.t) for b in drawn], seed=seed, progress=False)


def trained(pipe, data, observations, method, bits, args, seed):
    """The averaged, frozen model after training, and what the run was like."""
    settings = dict(METHODS[method])
    rates = settings.pop("rates")
    model = copy.deepcopy(pipe.unet)
    tdq.quantize(model, tdq.Recipe(*BITS[bits], **settings), verbose=False)
    tdq.calibrate(model, observations, seed=seed, progress=False)
    start = time.perf_counter()
    done = tdq.train(
        model,
        data,
        pipe.scheduler,
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        rates=rates,
        schedule="cosine",
        ema=0.999,
        seed=seed,
        progress=False,
    )
    tail = done.losses[-max(len(done.losses) // 5, 1) :]
    return tdq.freeze(done.average), {
        "loss": sum(tail) / len(tail),
        "seconds": round(time.perf_counter() - start, 1),
    }


def judged(pipe, model, frechet, reference, args):
    images = tdq.sample(
        model, pipe.scheduler, args.images, pipe.shape, steps=args.sampler_steps, batch=64,
        seed=args.noise, progress=False,
    )  # fmt: skip
    row = {"frechet": frechet(images)}
    if reference is not None:
        error = (images - reference).square().flatten(1).mean(1)
        row |= {"paired_mse": float(error.mean()), "paired_median": float(error.median())}
    return images, row


def summary(rows):
    """Mean and spread over seeds of every method, against LSQ at the published rates."""
    lines = []
    for bits in BITS:
        groups = {m: [r for r in rows if (r["bits"], r["method"]) == (bits, m)] for m in METHODS}
        base = groups["LSQ, published rates"]
        for method, found in groups.items():
            if not found or not base:
                continue
            scores = [r["frechet"] for r in found]
            mean = statistics.mean(scores)
            ratio = mean / statistics.mean(r["frechet"] for r in base)
            lines.append(
                [bits, method, len(scores), mean, min(scores), max(scores), ratio]
                + [statistics.mean(r[k] for r in found) for k in ("paired_mse", "loss")]
            )
    table(
        ["bits", "method", "seeds", "Frechet", "min", "max", "/ LSQ", "paired MSE", "loss"], lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=320, help="samples a run")
    parser.add_argument("--sampler-steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=int, default=77, help="seed of the samples")
    parser.add_argument("--only", nargs="+", default=list(BITS), choices=list(BITS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only print what was found")
    parser.add_argument("--name", default="qat", help="of the file in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {
        k: getattr(args, k) for k in ("steps", "batch", "rate", "images", "sampler_steps", "noise")
    }
    rows: list[dict] = []
    file = RESULTS / f"{args.name}.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{file} has rows of other settings: another --name")
        rows = before["rows"]
    if args.summary:
        return summary(rows)
    pipe = tdq.models.load_embedded("cats-ddpm")
    data = tdq.data.Cats("train", 20_000)
    frechet = FrechetDistance()
    reference, row = judged(pipe, pipe.unet, frechet, None, args)
    float_row = {"bits": "float", "method": "float", "seed": 0, **row}
    rows = [r for r in rows if r["bits"] != "float"] + [float_row]
    print(float_row, flush=True)
    for seed in args.seeds:
        observations = observed(pipe, data, args.batch, seed)
        for bits in args.only:
            for method in args.methods:
                key = {"bits": bits, "method": method, "seed": seed}
                if any(key.items() <= r.items() for r in rows):
                    continue
                frozen, run = trained(pipe, data, observations, method, bits, args, seed)
                _, row = judged(pipe, frozen, frechet, reference, args)
                rows.append({**key, **row, **run})
                print(rows[-1], flush=True)
                write(args.name, settings=settings, rows=rows)
    summary(rows)


if __name__ == "__main__":
    main()
