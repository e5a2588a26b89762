"""What each choice of the published training costs in quality, beside ours, at W4A4.

    python benchmarks/published_scheme.py [--seeds 0 1 2] [--threads 1]

The embedded latent model, which is a latent-diffusion UNet, trains from its float weights on the
diffusion loss as ``main.py`` does it: l1, AdamW, a moving average. Each row changes one thing; the
last ones change all. Every row is trained at both rates on seed 0 and keeps the one with the
smaller Frechet distance to 5,000 held-out cats there, so that its choice of rate is not counted
against it; further seeds take that rate. Results are kept row by row: repeat the command, and what
is there is not made again. Two processes can share the rows: --rows.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path

import torch

import tdquant as tdq
from record import RESULTS, table, write
from tdquant.calls.observing import observing
from tdquant.layers import quantized_layers
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.quantizers import OffsetQuantizer, activation_quantizers
from tdquant.scales import PublishedScale
from tdquant.training import Optimization

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
from protocol import Subject

STEPS, BATCH, IMAGES, SAMPLER_STEPS = 400, 16, 512, 20
RATES = (1e-4, 5e-4)
OURS = tdq.Recipe(4, 4, scale="temporal")
PUBLISHED = tdq.Recipe.published(4, 4)
# name: recipe, start, options of training
ROWS = {
    "ours": (OURS, "ours", {}),
    "scales at the network's rate": (OURS, "ours", {"rates": "equal"}),
    "dropout 0.2 in the scales' networks": (
        tdq.Recipe(4, 4, scale="temporal", temporal={"dropout": 0.2}), "ours", {},
    ),
    "one step for each weight": (
        tdq.Recipe(4, 4, scale="temporal", granularity="tensor"), "ours", {},
    ),
    "time path in float": (tdq.Recipe(4, 4, scale="temporal", time_weights=32), "ours", {}),
    "gradients not clipped": (OURS, "ours", {"clip": 0.0}),
    "published grids, offset and networks": (PUBLISHED, "least squares", {}),
    "the same, started as published": (PUBLISHED, "published", {}),
    "all as published": (PUBLISHED, "published", {"clip": 0.0}),
    "all as published, static (LSQ)": (
        tdq.Recipe.published(4, 4, dynamic=False), "published", {"clip": 0.0},
    ),
}  # fmt: skip


def quantized(subject, recipe, start, seed):
    """The model where its training starts."""
    model = subject.quantized(recipe)
    if recipe.grid != "published":
        calls = list(subject.noised(BATCH, 16, seed))
        tdq.calibrate(model, calls, seed=seed, progress=False)
        return model
    calls = one_batch(subject, seed)
    tdq.calibrate(model, calls, seed=seed, progress=False)
    if start == "least squares":
        restart(model, calls[:16])
    return model


def one_batch(subject, seed):
    """100 draws of time and noise for the first batch."""
    from tdquant.training import DiffusionObjective
    from tdquant.training.order import loader

    objective = DiffusionObjective(subject.pipe.scheduler)
    items = next(iter(loader(subject.data, BATCH, seed=seed)))
    drawn = [objective.draw(items, seed + 1, k, range(BATCH), "cpu") for k in range(100)]
    return [(d.x_t, d.t) for d in drawn]


@torch.no_grad()
def restart(model, calls):
    """Starts the published quantizers at the steps of least squared error instead: activations
    from their values in float, weights from themselves.
    """
    quantizers = dict(activation_quantizers(model))
    seen = {name: [] for name in quantizers}

    def look(name, x, timestep):
        flat = x.float().flatten()
        seen[name].append(flat[:: max(flat.numel() // 4096, 1)])
        return x

    with observing(model, quantizers, look):
        for call in calls:
            model(*call)
    for name, quantizer in quantizers.items():
        x = torch.cat(seen[name])
        if isinstance(quantizer, OffsetQuantizer):
            x = x - quantizer.offset
        step = least(x, quantizer.grid)
        if isinstance(quantizer.scale, PublishedScale):
            last = quantizer.scale.network[-1]
            last.bias.fill_(float(torch.tensor(step).expm1().log()))
        else:
            quantizer.scale.step.fill_(step)
    for _, layer in quantized_layers(model):
        weight = layer.weight_quantizer
        weight.step.fill_(least(layer.weight.flatten(), weight.grid))


def least(x, grid):
    """The step of least squared error."""
    steps = float(x.abs().max()) / grid.high * torch.linspace(0.02, 1, 99)
    errors = [float((fake_quantize(x, s, grid.low, grid.high) - x).square().mean()) for s in steps]
    return float(steps[min(range(len(errors)), key=errors.__getitem__)])


def run(subject, name, rate, seed):
    recipe, start, options = ROWS[name]
    model = quantized(subject, recipe, start, seed)
    untrained = subject.judge(tdq.freeze(copy.deepcopy(model).eval()))
    done = tdq.train(
        model, subject.data, subject.pipe.scheduler, loss="l1", steps=STEPS, batch=BATCH,
        rate=rate, seed=seed, progress=False,
        optimization=Optimization(**{"rates": "published", "warmup": 20, "ema": 0.99, **options}),
    ).tdq.training  # fmt: skip
    found = subject.judge(tdq.freeze(done.average))
    return {"row": name, "rate": rate, "seed": seed, "untrained": untrained["frechet"], **found}


def kept(runs, name):
    """The runs of a row at the rate that was better on seed 0."""
    first = [r for r in runs if r["row"] == name and r["seed"] == 0]
    if len(first) < len(RATES):
        return []
    rate = min(first, key=lambda r: r["frechet"])["rate"]
    return [r for r in runs if r["row"] == name and r["rate"] == rate]


def summary(runs):
    rows = []
    for name in ROWS:
        found = kept(runs, name)
        if found:
            values = [r["frechet"] for r in found]
            rows.append({
                "row": name,
                "rate": found[0]["rate"],
                "seeds": len(found),
                "untrained": statistics.mean(r["untrained"] for r in found),
                "frechet": statistics.mean(values),
                "low": min(values),
                "high": max(values),
                "paired_median": statistics.mean(r["paired_median"] for r in found),
            })  # fmt: skip
    return rows


def read():
    """The runs that were made."""
    file = RESULTS / "published_scheme.json"
    return json.loads(file.read_text())["runs"] if file.exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = read()
    subject = Subject("cats-ldm", IMAGES, SAMPLER_STEPS)
    exact = subject.judge_float()["frechet"]
    settings = {
        "model": "cats-ldm", "bits": "W4A4", "steps": STEPS, "batch": BATCH, "images": IMAGES,
        "sampler_steps": SAMPLER_STEPS, "float": exact,
    }  # fmt: skip
    for seed in options.seeds:
        for name in options.rows:
            rates = RATES if seed == 0 else [r["rate"] for r in kept(runs, name)[:1]]
            for rate in rates:
                key = {"row": name, "rate": rate, "seed": seed}
                if any(key.items() <= r.items() for r in runs):
                    continue
                made = run(subject, name, rate, seed)
                print(made, flush=True)
                runs = [*read(), made]  # another process may have added to them meanwhile
                write("published_scheme", settings=settings, runs=runs, rows=summary(runs))
    write("published_scheme", settings=settings, runs=read(), rows=summary(read()))
    head = ["row", "rate", "seeds", "untrained", "frechet", "low", "high", "paired_median"]
    table(head, [[row[key] for key in head] for row in summary(read())])
    print(f"float: {exact:.1f}")


if __name__ == "__main__":
    main()
