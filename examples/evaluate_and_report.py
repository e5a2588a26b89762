"""Evaluates a quantized model beside the float one, and writes a page about both.

    python examples/evaluate_and_report.py --images 1000

Each model is sampled from the same noise into a folder of its own, RUNS/NAME, with the images, the
features, the layers and record.json, which says the numbers with their intervals and everything
that they depend on. Stopped and started again, it goes on where it was; with more images it keeps
those that are there.

Printed is the table of all runs, and beneath it what must not be compared. RUNS/report.html shows
the same with plots and pictures, and needs nothing but itself.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import tdquant as tdq
from tdquant.lab.evaluation import comparison_table, evaluate
from tdquant.lab.metrics import load_network
from tdquant.lab.report import report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500, help="a model (default: 500)")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--tiny", action="store_true", help="an untrained model, a few images")
    args = parser.parse_args()

    pipe = tdq.models.load_embedded("tiny" if args.tiny else "cats-ddpm")
    images, steps = (12, 2) if args.tiny else (args.images, args.steps)
    pipes = {"float": pipe}
    for scale in ("temporal",) if args.tiny else ("static", "temporal"):
        model = copy.deepcopy(pipe.unet)
        tdq.quantize(model, tdq.Recipe(weights=4, activations=5, scale=scale))
        calls = tdq.trajectories(pipe, 4 if args.tiny else 16, steps=steps)
        estimator = "mse" if args.tiny else "auto"
        tdq.calibrate(model, calls, estimator=estimator, progress=not args.tiny)
        pipes[scale] = replace(pipe, unet=tdq.freeze(model), name=f"{pipe.name}-{scale}")

    network = load_network("efficientnet-lite0")
    records = [
        evaluate(
            each,
            args.out / name,
            images=images,
            steps=steps,
            against=None if each is pipe else pipe,
            reference="cats:heldout:16" if args.tiny else "cats-heldout",
            network=network,
            metrics=["kid"] if args.tiny else None,
            resamples=4 if args.tiny else 100,
            progress=not args.tiny,
        )
        for name, each in pipes.items()
    ]
    print(comparison_table(records, list(pipes)))
    print(f"wrote {report(args.out, args.out / 'report.html', 'One model, float and quantized')}")


if __name__ == "__main__":
    main()
