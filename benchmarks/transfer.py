"""Scales calibrated once, sampled with other numbers of steps and other schedulers.

    python benchmarks/transfer.py           # seven minutes on two cores; --images, --bits

Calibration sees trajectories of 50 DDIM steps. The paired error is that of the final samples
against the float model's, by the same scheduler from the same noise, which calibration never saw;
as median and as mean over the images, since an image that tips over into another one weighs a
hundred times the rest in the mean. Static scales are those of the percentile, the best of the
static ones in ``studies/ptq.py`` at these widths.
"""

import argparse
import copy
import time

import tdquant as tdq
from record import table, write
from tdquant.diffusion import make_scheduler
from tdquant.lab.metrics import mse

PLANS = {"static": ("static", "percentile"), "auto": ("auto", "auto")}
SAMPLERS = [("ddim", n) for n in (10, 20, 50, 100, 250)] + [("dpm++", 20), ("euler", 30)]
SEEDS = {"calibration": 1, "trials": 3, "test": 77}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--bits", type=int, nargs=2, default=(8, 5), metavar=("W", "A"))
    args = parser.parse_args()
    pipe = tdq.models.load_embedded("cats-ddpm")

    def draw(model, name, steps):
        return tdq.sample(
            model, make_scheduler(name, pipe.scheduler), args.images, pipe.shape, steps=steps,
            batch=32, seed=SEEDS["test"], progress=False,
        )  # fmt: skip

    def calls():
        seed = SEEDS["calibration"]
        return tdq.trajectories(pipe.unet, pipe.scheduler, 16, pipe.shape, batch=16, seed=seed)

    def generate(model):
        return tdq.sample(
            model, pipe.scheduler, 16, pipe.shape, steps=20, batch=16, seed=SEEDS["trials"],
            progress=False,
        )  # fmt: skip

    models, seconds = {"float": pipe.unet}, {}
    for name, (scale, estimator) in PLANS.items():
        recipe = tdq.Recipe(*args.bits, scale=scale, remedies=())
        model = tdq.quantize(copy.deepcopy(pipe.unet), recipe)
        began = time.perf_counter()
        tdq.calibrate(model, calls(), estimator=estimator, generate=generate, progress=False)
        seconds[name] = time.perf_counter() - began
        print(f"{name}: calibrated in {seconds[name]:.1f} s", flush=True)
        models[name] = tdq.compile(tdq.freeze(model), "onednn")
    rows = []
    for name, steps in SAMPLERS:
        exact = draw(models["float"], name, steps)
        each = {plan: mse(draw(models[plan], name, steps), exact) for plan in PLANS}
        row = {"scheduler": name, "steps": steps}
        row |= {f"{plan}_median": float(errors.median()) for plan, errors in each.items()}
        row |= {f"{plan}_mean": float(errors.mean()) for plan, errors in each.items()}
        rows.append(row | {"ratio_median": row["auto_median"] / row["static_median"]})
        print(rows[-1], flush=True)
    table(list(rows[0]), [list(row.values()) for row in rows])
    write(
        "transfer", images=args.images, bits=list(args.bits), rows=rows,
        calibration_seconds=seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
