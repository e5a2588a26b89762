"""Searched bits against uniform ones, and split layers against whole ones, on the embedded model.

    python benchmarks/search.py            # about twenty minutes on two cores

Models of one row have the same size, the same observations and the same seeds. The call error is
the mean squared output error over calls of trajectories that calibration has not seen; the paired
error is that of final samples against the float model's from the same noise, as mean and median
over the images. "balanced" is a search in which all times count alike: ``Sensitivity.balanced``.
"""

import argparse
import copy
import time
from pathlib import Path

import torch

import tdquant as tdq
from record import table, write
from tdquant.lab.metrics import mse
from tdquant.refine.search import search, sensitivity

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WEIGHTS = (3, 4)
INPUTS = (4,)
SPLITS = ((4, 4), (8, 4))
KINDS = ("uniform", "searched", "balanced")
TEST_SEED = 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calls", type=int, default=20, help="kept for judging, of 8 samples")
    args = parser.parse_args()
    pipe = tdq.models.load_embedded("cats-ddpm")

    def calls(count, seed):
        return tdq.trajectories(
            pipe.unet, pipe.scheduler, count, pipe.shape, steps=args.steps, batch=count, seed=seed
        )

    def run(model):
        return tdq.sample(
            model, pipe.scheduler, args.images, pipe.shape, steps=args.steps, batch=16,
            seed=TEST_SEED, progress=False,
        )  # fmt: skip

    def quantized(recipe):
        return tdq.quantize(copy.deepcopy(pipe.unet), recipe)

    held_out = list(calls(4, TEST_SEED))
    with torch.no_grad():
        outputs = [pipe.unet(*call) for call in held_out]
    images = run(pipe.unet)

    def measure(recipe, **options):
        model = quantized(recipe)
        report = tdq.calibrate(model, observations, progress=False, **options).tdq.calibration
        frozen = tdq.freeze(model)
        with torch.no_grad():
            errors = [
                (frozen(*call) - y).square().flatten(1).mean(1)
                for call, y in zip(held_out, outputs, strict=True)
            ]
        each = mse(run(frozen), images)
        return {
            "call": float(torch.cat(errors).mean()),
            "call_median": float(torch.cat(errors).median()),
            "paired": float(each.mean()),
            "paired_median": float(each.median()),
            "splits": len(report.splits),
            "chosen": report.chosen,
        }

    observations = tdq.observe(
        quantized(tdq.Recipe(remedies=())), calls(8, 1), calls=args.calls, progress=False
    )
    started = time.perf_counter()
    measured = sensitivity(
        quantized(tdq.Recipe(weights=4, remedies=())), observations, progress=False
    )
    seconds = time.perf_counter() - started
    print(f"sensitivity of {len(measured.layers)} layers: {seconds:.0f} s")
    print(measured, flush=True)

    both = measured, measured.balanced()
    rows, splits = [], []

    def keep():
        """Writes what is known so far: a run that is stopped leaves its rows."""
        write(
            "search",
            images=args.images,
            steps=args.steps,
            calls=args.calls,
            sensitivity_seconds=seconds,
            rows=rows,
            splits=splits,
        )

    def compare(label, uniform, found, balanced, predicted):
        row = {
            "label": label,
            "bits": found.bits,
            "activation_bits": found.activation_bits,
            "predicted": {"uniform": predicted, "searched": found.error},
            "uniform": measure(uniform),
            "searched": measure(found.recipe),
            "balanced": measure(balanced.recipe),
        }
        rows.append(row)
        print(row, flush=True)
        keep()

    for bits in WEIGHTS:
        base = tdq.Recipe(weights=bits, activations=8, remedies=())
        found, balanced = (search(m, target_bits=bits, base=base) for m in both)
        compare(f"W{bits}A8", base, found, balanced, dict(found.uniform)[bits])
    found = search(measured, target_bits=4, base=tdq.Recipe(weights=4, activations=8, remedies=()))
    found.plot(IMAGES / "search.png")
    for bits in INPUTS:
        base = tdq.Recipe(weights=8, activations=bits, remedies=())
        uniform = search(measured, target_bits=8, base=base)
        found, balanced = (
            search(m, target_bits=8, target_activation_bits=bits, base=base) for m in both
        )
        compare(f"W8A{bits}", base, found, balanced, uniform.error)

    names = ["call", "call_median", "paired", "paired_median"]
    table(
        ["bits", *(f"{n} uniform / searched / balanced" for n in names), "predicted"],
        [
            [
                r["label"],
                *(" / ".join(f"{r[kind][n]:.3g}" for kind in KINDS) for n in names),
                f"{r['predicted']['uniform']:.3g} / {r['predicted']['searched']:.3g}",
            ]
            for r in rows
        ],
    )

    before = {row["label"]: row["uniform"] for row in rows}
    for weights, activations in SPLITS:
        recipe = tdq.Recipe(weights=weights, activations=activations, remedies=())
        label = f"W{weights}A{activations}"
        row = {
            "label": label,
            "whole": measure(recipe, split=False),
            "split": before.get(label) or measure(recipe),
        }
        splits.append(row)
        print(row, flush=True)
    table(
        ["bits", "layers split", *(f"{n} whole / split" for n in names)],
        [
            [
                r["label"],
                r["split"]["splits"],
                *(f"{r['whole'][n]:.3g} / {r['split'][n]:.3g}" for n in names),
            ]
            for r in splits
        ],
    )
    keep()


if __name__ == "__main__":
    main()
