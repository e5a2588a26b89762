"""Cost of a training step, forward, backward and AdamW, of quantized models against the float one.

    python benchmarks/training.py

W4A4. Steps of all models alternate in one process, so that a noisy machine disturbs all alike;
ratios are those of medians, and of the fastest steps.
"""

import argparse
import copy
import statistics
import time

import torch

import tdquant as tdq
from record import table, write
from tdquant.training import parameter_groups

KINDS = ("static", "dynamic", "temporal", "table", "pact", "nipq")


def small_unet():
    """A UNet of about 7M parameters on 32x32 images."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
    )


def quantized(model, shape, kind):
    recipe = tdq.Recipe(weights=4, activations=4, scale=kind)
    model = tdq.quantize(copy.deepcopy(model), recipe)
    calls = [(torch.randn(1, *shape), torch.tensor(t)) for t in (0, 500, 999)]
    tdq.calibrate(model, calls, estimator="mse", progress=False)
    return model


def stepper(model, shape, batch):
    """A function that makes one training step on random data."""
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5), fused=True)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=rng)

    def step():
        y = model(x, torch.randint(0, 1000, (batch,), generator=rng))
        y = y if isinstance(y, torch.Tensor) else y.sample
        (y - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(name, model, shape, batch, kinds, rounds):
    models = {"float": model} | {kind: quantized(model, shape, kind) for kind in kinds}
    steps = {kind: stepper(m, shape, batch) for kind, m in models.items()}
    seconds = {kind: [] for kind in steps}
    for turn in range(rounds + 2):
        for kind, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:
                seconds[kind].append(time.perf_counter() - started)
    exact = seconds["float"]
    return [
        {
            "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "batch": batch,
            "scale": kind,
            "median": statistics.median(found),
            "fastest": min(found),
            "median_ratio": statistics.median(found) / statistics.median(exact),
            "fastest_ratio": min(found) / min(exact),
        }
        for kind, found in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scales", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cats = tdq.models.load_embedded("cats-ddpm")
    rows = measure("cats-ddpm", cats.unet, cats.shape, 32, args.scales, args.rounds)
    rows += measure("UNet2DModel", small_unet(), (3, 32, 32), 16, args.scales, args.rounds)
    columns = ["model", "batch", "scale", "median", "fastest", "median_ratio", "fastest_ratio"]
    table(columns, [[row[c] for c in columns] for row in rows])
    write("training", threads=args.threads, rounds=args.rounds, rows=rows)


if __name__ == "__main__":
    main()
