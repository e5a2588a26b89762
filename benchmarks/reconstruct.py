"""Reconstruction against plain PTQ on the embedded models: paired error, Frechet distance, time.

    OMP_NUM_THREADS=1 python benchmarks/reconstruct.py    # an hour or two; goes on where it was
    python benchmarks/reconstruct.py --only cats-ddpm --methods plain adaround-model

All models of one width start from one calibration (``auto`` scales, choices confirmed on generated
samples), and all methods get the same calls: 32 trajectories of 50 DDIM steps. The paired error is
that of the final samples against the float model's from the same noise, clamped to [-1, 1]; the
noise of the test is not that of calibration. Rows are written as they come. Seconds are those of
the wall, and of the processor: with one thread what the wall shows where nothing else runs.
"""

import argparse
import copy
import json
import time

import torch

import tdquant as tdq
from record import RESULTS, table, write
from tdquant.lab.metrics import FrechetDistance, mse
from tdquant.refine.reconstruction import reconstruct

MODELS = ("cats-ddpm", "cats-ldm")
WIDTHS = {"W4A8": (4, 8), "W4A4": (4, 4)}
METHODS = {
    "plain": None,
    "bias correction": None,
    "gptq": {"method": "gptq"},
    "adaround-block": {"method": "adaround", "scope": "block", "iterations": 150},
    "adaround-model": {"method": "adaround", "scope": "model"},
}
TEST_SEED = 77
TRAJECTORIES = 32


def calls(pipe):
    return tdq.trajectories(pipe.unet, pipe.scheduler, TRAJECTORIES, pipe.shape, batch=16, seed=1)


def calibrated(pipe, bits, bias_correction=False):
    def generate(net):
        return tdq.sample(
            net, pipe.scheduler, 16, pipe.shape, steps=20, batch=16, seed=3, progress=False
        )

    weights, activations = WIDTHS[bits]
    recipe = tdq.Recipe(weights=weights, activations=activations, remedies=())
    model = tdq.quantize(copy.deepcopy(pipe.unet), recipe)
    tdq.calibrate(
        model, calls(pipe), generate=generate, bias_correction=bias_correction, progress=False
    )
    return model


def images(pipe, model, count, steps):
    return tdq.sample(
        model, pipe.scheduler, count, pipe.shape, steps=steps, batch=32, seed=TEST_SEED,
        progress=False,
    )  # fmt: skip


def decoded(pipe, samples):
    return samples if pipe.vae is None else pipe.decode(samples).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=192, help="of the paired error")
    parser.add_argument("--frechet", type=int, default=500, help="samples of the distance, or 0")
    parser.add_argument("--frechet-steps", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=300, help="of the whole model at once")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    settings = {
        k: getattr(args, k) for k in ("images", "frechet", "frechet_steps", "iterations")
    } | {"threads": torch.get_num_threads()}
    file = RESULTS / "reconstruct.json"
    rows: list[dict] = []
    if file.exists():
        before = json.loads(file.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{file} has rows of other settings: {before['settings']}")
        rows = before["rows"]
    frechet = FrechetDistance()
    for name in args.only:
        pipe = tdq.models.load_embedded(name)
        exact = images(pipe, pipe.unet, args.images, 50)
        for bits in args.bits:
            start = None
            for method in args.methods:
                if any((r["model"], r["bits"], r["method"]) == (name, bits, method) for r in rows):
                    continue
                options, seconds, work = METHODS[method], 0.0, 0.0
                if method == "bias correction":
                    model = calibrated(pipe, bits, bias_correction=True)
                else:
                    start = start or calibrated(pipe, bits)
                    model = copy.deepcopy(start)
                if options is not None:
                    begun, worked = time.perf_counter(), time.process_time()
                    options = {"iterations": args.iterations, "progress": False} | options
                    reconstruct(model, calls(pipe), **options)
                    seconds = time.perf_counter() - begun
                    work = time.process_time() - worked
                frozen = tdq.freeze(model)
                each = mse(images(pipe, frozen, args.images, 50), exact)
                row = {
                    "model": name, "bits": bits, "method": method, "mse": float(each.mean()),
                    "median": float(each.median()), "seconds": round(seconds, 1),
                    "cpu_seconds": round(work, 1),
                }  # fmt: skip
                if args.frechet:
                    many = images(pipe, frozen, args.frechet, args.frechet_steps)
                    row["frechet"] = frechet(decoded(pipe, many))
                rows.append(row)
                print(row, flush=True)
                write("reconstruct", settings=settings, rows=rows)
    show(rows)


def show(rows):
    lines = []
    for row in rows:
        key = row["model"], row["bits"]
        plain = next(
            (r for r in rows if (r["model"], r["bits"], r["method"]) == (*key, "plain")), None
        )
        ratio = row["mse"] / plain["mse"] if plain else "-"
        cells = (
            row["mse"],
            ratio,
            row["median"],
            row.get("frechet", "-"),
            row["seconds"],
            row.get("cpu_seconds", "-"),
        )
        lines.append([*key, row["method"], *cells])
    head = ["model", "bits", "method", "paired mse", "/ plain", "median", "Frechet", "s", "cpu s"]
    table(head, lines)


if __name__ == "__main__":
    main()
