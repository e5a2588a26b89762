"""Quantization-aware training: what calibration loses at four bits, and what training brings back.

    python examples/finetune_low_bits.py                # some minutes on two cores
    python examples/finetune_low_bits.py --bits 3 --steps 1000 --out cats-w3a3

The embedded cats model gets temporal scales and is calibrated on its own trajectories. It is
then trained with the float model as its teacher. A run that was stopped goes on when the command
is repeated. The moving average is frozen and saved in OUT/frozen.

Printed is the error of samples against those of the float model from the same noise, mean and
median over the images, before and after.
"""

import argparse
import copy

import tdquant as tdq
from tdquant.training import Checkpointing, Optimization


def report(when: str, model, exact, pipe, steps: int) -> None:
    """Prints the paired error of a frozen model."""
    options = {"steps": steps, "seed": 1, "progress": False}
    images = tdq.sample(model, pipe.scheduler, len(exact), pipe.shape, **options)
    error = tdq.metrics.mse(images, exact)
    print(f"{when}: paired MSE {error.mean():.4f}, median {error.median():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=4, help="of weights and activations")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    parser.add_argument("--out", default="cats-low-bits", help="folder of the run")
    parser.add_argument("--tiny", action="store_true", help="an untrained model, three steps")
    args = parser.parse_args()

    pipe = tdq.models.load_embedded("tiny" if args.tiny else "cats-ddpm")
    steps, sampler_steps = (3, 4) if args.tiny else (args.steps, 20)
    options = {"steps": sampler_steps, "seed": 1, "progress": False}
    count = 4 if args.tiny else 32
    exact = tdq.sample(pipe.unet, pipe.scheduler, count, pipe.shape, **options)

    recipe = tdq.Recipe(weights=args.bits, activations=args.bits, scale="temporal")
    model = tdq.quantize(copy.deepcopy(pipe.unet), recipe)
    calls = tdq.trajectories(pipe, 2 if args.tiny else 16, steps=sampler_steps)
    estimator = "mse" if args.tiny else "auto"
    tdq.calibrate(model, calls, estimator=estimator, progress=not args.tiny)
    report("calibrated", tdq.freeze(model), exact, pipe, sampler_steps)

    run = tdq.train(
        model,
        tdq.data.Cats("train", count=64 if args.tiny else 10_000, size=pipe.shape[-1]),
        pipe.scheduler,
        steps=steps,
        batch=4 if args.tiny else 16,
        rate=1e-4,  # at 1e-3 a short run destroys more than it mends
        optimization=Optimization(schedule="cosine", ema=0.98),
        teacher=pipe.unet,
        distill=1.0,
        out=args.out,
        checkpoints=Checkpointing(every=100),
        progress=not args.tiny,
    ).tdq.training
    frozen = tdq.freeze(run.average)  # the moving average samples better than the last step
    report(f"after {run.step} steps", frozen, exact, pipe, sampler_steps)
    print(f"saved: {tdq.save(frozen, f'{args.out}/frozen')}")


if __name__ == "__main__":
    main()
