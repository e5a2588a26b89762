"""PTQ on the embedded model: static against temporal scales, by widths, steps and schedulers.

    python benchmarks/ptq.py            # about a quarter of an hour on two cores
    python benchmarks/ptq.py --images 16

Static scales are calibrated by min-max, percentile and mse; the best of the three is the baseline,
and all get the same grids, calls and seeds. The paired error is that of the final samples against
the float model's from the same noise, clamped to [-1, 1], as mean and as median over the images:
an image that tips over into another one weighs a hundred times the rest in the mean. The noise of
the test is not that of calibration.
"""

import argparse
import copy
import time

import torch

import tdquant as tdq
from record import table, write
from tdquant.diffusion import make_scheduler
from tdquant.metrics import mse
from tdquant.quantizers import activation_quantizers

WIDTHS = [(8, 8), (8, 5), (32, 5), (32, 4)]
STATIC = ("minmax", "percentile", "mse")
TRANSFER = [("ddim", n) for n in (10, 20, 50, 100, 250)] + [("dpm++", 20), ("euler", 30)]
TEST_SEED = 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args()
    pipe = tdq.models.load_embedded("cats-ddpm")

    def run(model, name="ddim", steps=50, images=args.images):
        scheduler = make_scheduler(name, pipe.scheduler)
        return tdq.sample(
            model,
            scheduler,
            images,
            pipe.shape,
            steps=steps,
            batch=32,
            seed=TEST_SEED,
            progress=False,
        )

    def error(model, exact, **options):
        return float(mse(run(model, images=len(exact), **options), exact).mean())

    def generate(net):
        return tdq.sample(
            net, pipe.scheduler, 16, pipe.shape, steps=20, batch=16, seed=3, progress=False
        )

    def calls():
        return tdq.trajectories(pipe.unet, pipe.scheduler, 16, pipe.shape, batch=16, seed=1)

    def quantized(weights, activations, scale):
        recipe = tdq.Recipe(weights=weights, activations=activations, scale=scale)
        return tdq.quantize(copy.deepcopy(pipe.unet), recipe, verbose=False)

    observations = tdq.observe(quantized(8, 8, "auto"), calls(), progress=False)
    exact = run(pipe.unet)
    rows, kept = [], {}
    for weights, activations in WIDTHS:
        found, medians = {}, {}
        plans = [("static", e) for e in STATIC] + [
            ("temporal", "auto"),
            ("auto", "auto"),
            ("dynamic", "auto"),
        ]
        for scale, estimator in plans:
            model = quantized(weights, activations, scale)
            report = tdq.calibrate(
                model, observations, estimator=estimator, generate=generate, progress=False
            )
            frozen = tdq.freeze(model)
            key = f"{scale} {estimator}"
            each = mse(run(frozen), exact)
            found[key], medians[key] = float(each.mean()), float(each.median())
            kept[weights, activations, key] = frozen
            print(
                f"W{weights}A{activations} {key}: {found[key]:.3g} ({report.chosen})", flush=True
            )
        best = min((k for k in found if k.startswith("static")), key=found.get)
        kinds = [
            q.scale.static
            for _, q in activation_quantizers(kept[weights, activations, "auto auto"])
        ]
        rows.append(
            {
                "weights": weights,
                "activations": activations,
                "mse": found,
                "median": medians,
                "best_static": best,
                "ratio_auto": found["auto auto"] / found[best],
                "ratio_temporal": found["temporal auto"] / found[best],
                "temporal_layers": kinds.count(False),
                "layers": len(kinds),
            }
        )
    head = ["bits", "best static", "temporal", "auto (default)", "dynamic", "auto / static"]
    for measure in ("mse", "median"):
        print(f"paired error of the samples, {measure}")
        table(
            head,
            [
                [
                    f"W{r['weights']}A{r['activations']}",
                    r[measure][r["best_static"]],
                    *(r[measure][f"{kind} auto"] for kind in ("temporal", "auto", "dynamic")),
                    r[measure]["auto auto"] / r[measure][r["best_static"]],
                ]
                for r in rows
            ],
        )

    transfer = []
    few = min(24, args.images)
    for name, steps in TRANSFER:
        float_images = run(pipe.unet, name, steps, few)
        for weights, activations in ((8, 5),):
            row = next(
                r for r in rows if (r["weights"], r["activations"]) == (weights, activations)
            )
            pair = {
                kind: error(kept[weights, activations, key], float_images, name=name, steps=steps)
                for kind, key in (("static", row["best_static"]), ("temporal", "auto auto"))
            }
            bits = f"W{weights}A{activations}"
            transfer.append({"bits": bits, "scheduler": name, "steps": steps, **pair})
            print(transfer[-1], flush=True)
    table(
        ["bits", "scheduler", "steps", "static", "temporal", "temporal / static"],
        [[*t.values(), t["temporal"] / t["static"]] for t in transfer],
    )

    model = quantized(8, 5, "auto")
    started = time.perf_counter()
    tdq.calibrate(model, calls(), generate=generate, progress=False)
    seconds = time.perf_counter() - started
    print(f"calibration of the embedded model, trajectories and trials included: {seconds:.1f} s")
    frozen = tdq.freeze(model)
    x = torch.randn(4, *pipe.shape, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    with torch.no_grad():
        for t in range(0, 1000, 37):
            live = model(x, torch.tensor(t))
            worst = max(worst, float((frozen(x, torch.tensor(t)) - live).norm() / live.norm()))
    t = torch.arange(1000)
    live = dict(activation_quantizers(model.requires_grad_(False)))
    table_error = max(
        float((q.scale(t, x, q.grid) / live[n].scale(t, x, q.grid) - 1).abs().max())
        for n, q in activation_quantizers(frozen)
    )
    print(f"frozen against live: scales {table_error:.2g} relative, output {worst:.2g} relative")
    write(
        "ptq",
        images=args.images,
        steps=50,
        rows=rows,
        transfer=transfer,
        calibration_seconds=seconds,
        frozen_scale_error=table_error,
        frozen_output_error=worst,
    )


if __name__ == "__main__":
    main()
