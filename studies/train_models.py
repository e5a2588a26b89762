"""Trains one of the small models that the studies choose defaults on and judge them by.

    python studies/train_models.py mlp-cats8                  # its minutes of one core
    python studies/train_models.py dit-cats --minutes 30      # longer
    python studies/train_models.py dit-cats --steps 2000      # exactly so many optimizer steps

Killed and started again it goes on, and ends in the same bits. ``runs/NAME`` has checkpoints, the
log of losses and samples on the way; ``studies/models/NAME`` gets the averaged weights in float16,
a card, and 16 samples.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import tdquant as tdq
from small_models import CARD, DEV, MODELS, PLANS, WEIGHTS, load
from small_models.networks import build
from small_models.noising import make_scheduler, objective
from small_models.plans import DATA, Plan
from tdquant.diffusion.pictures import grid, save_png
from tdquant.files.digests import file_digest
from tdquant.files.writing import replacing
from tdquant.lab.data import StoredImages
from tdquant.lab.data.fashion_mnist import ROOT
from tdquant.support.machine import processor
from tdquant.training import Checkpointing, Optimization
from tdquant.training.callbacks import SampleGrid

SHEET_SEED, CHECK_SEED, CHECKED = 5, 6, 512


def learn(
    plan: Plan, network: nn.Module, images: StoredImages, steps: int, out: Path | None
) -> nn.Module:
    """Trains the network of a plan for ``steps`` optimizer steps in all, from the newest
    checkpoint in ``out`` if there is one.
    """
    scheduler = make_scheduler(plan.scheduler)

    def draw(model: nn.Module) -> torch.Tensor:
        return tdq.sample(
            model, scheduler, 16, plan.shape, steps=plan.steps, seed=SHEET_SEED, progress=False
        )

    return tdq.train(
        network,
        images,
        objective=objective(scheduler, plan.spread),
        steps=steps,
        batch=plan.batch,
        rate=plan.rate,
        optimization=Optimization(
            schedule="cosine", ema=0.999, precision="bf16" if plan.bf16 else "no"
        ),
        seed=plan.seed,
        out=out,
        checkpoints=Checkpointing(every=100),
        callbacks=[SampleGrid(out, draw, every=500)] if out else [],
        progress=False,
    )


def affordable(plan: Plan, images: StoredImages, minutes: float, tries: int = 10) -> int:
    """Optimizer steps that fit into so many minutes of this processor, by its time for a few."""
    network = build(plan.network)
    learn(plan, network, images, 1, None)
    began = time.process_time()
    learn(plan, network, images, tries, None)
    return max(1, round(60 * minutes * tries / (time.process_time() - began)))


@torch.no_grad()
def error(model: nn.Module, plan: Plan, images: StoredImages) -> float:
    """The training loss on pictures, each once, with fixed noise."""
    judge = objective(make_scheduler(plan.scheduler), plan.spread)
    items = torch.stack([images[i] for i in range(len(images))])
    losses = []
    for step, part in enumerate(items.split(64)):
        batch = judge.draw(part, CHECK_SEED, step, range(len(part)), "cpu")
        losses.append(float(judge(model, batch)[0]) * len(part))
    return sum(losses) / len(items)


def export(name: str, plan: Plan, average: nn.Module, told: dict[str, Any], root: str) -> Path:
    """Writes what is committed: weights, card and samples; returns the folder."""
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in average.state_dict().items()}
    with replacing(folder / WEIGHTS) as fresh:
        save_file(weights, fresh)
    shipped = copy.deepcopy(average)
    shipped.load_state_dict({k: v.float() for k, v in weights.items()})
    art = DATA[plan.data]
    heldout = art.images("heldout", CHECKED, plan.shape[-1], root)
    card = {
        "name": name,
        "role": "dev" if name in DEV else "held out",
        "network": plan.network,
        "scheduler": plan.scheduler,
        "shape": list(plan.shape),
        "steps": plan.steps,
        "parameters": sum(v.numel() for v in weights.values()),
        "sha256": file_digest(folder / WEIGHTS),
        "data": {
            "name": plan.data, "pictures": plan.pictures, "spread": plan.spread,
            "licence": art.licence, "attribution": art.attribution,
        },
        "licence": f"Apache-2.0, with the attribution of the data ({art.licence})",
        "training": {
            **told, "batch": plan.batch, "rate": plan.rate, "seed": plan.seed,
            "bf16": plan.bf16, "heldout_loss": round(error(shipped, plan, heldout), 5),
            "command": f"python studies/train_models.py {name} --steps {told['steps']}",
            "processor": processor(), "torch": torch.__version__,
        },
    }  # fmt: skip
    with replacing(folder / CARD) as fresh:
        fresh.write_text(json.dumps(card, indent=1) + "\n")
    model = load(name)
    samples = tdq.sample(
        model.unet, model.scheduler, 16, model.shape, steps=model.steps, seed=SHEET_SEED,
        progress=False,
    )  # fmt: skip
    sheet = grid(samples, gap=1)
    scale = max(1, 256 // sheet.shape[-1])
    save_png(
        sheet.repeat_interleave(scale, -1).repeat_interleave(scale, -2), folder / "samples.png"
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=tuple(PLANS))
    parser.add_argument("--minutes", type=float, help="of one core; those of the plan if absent")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of minutes")
    parser.add_argument("--pictures", type=int, help="training pictures; those of the plan")
    parser.add_argument("--out", type=Path, default=Path("runs/small-models"))
    parser.add_argument("--root", default=ROOT, help="folder of Fashion-MNIST's files")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    plan, out = PLANS[args.name], args.out / args.name
    out.mkdir(parents=True, exist_ok=True)
    images = DATA[plan.data].images(
        "train", args.pictures or plan.pictures, plan.shape[-1], args.root
    )
    chosen = out / "steps"  # a measured number is kept, or a resumed run would be another
    if args.steps is None and not chosen.exists():
        chosen.write_text(str(affordable(plan, images, args.minutes or plan.minutes)))
    steps = args.steps or int(chosen.read_text())
    print(f"{args.name}: {steps} steps of {plan.batch}", flush=True)
    torch.manual_seed(plan.seed)
    network = build(plan.network)
    began = time.process_time()
    trained = learn(plan, network, images, steps, out)
    result = trained.tdq.training
    spent = out / "cpu-seconds"  # of earlier parts of this run
    seconds = time.process_time() - began + float(spent.read_text() if spent.exists() else 0)
    spent.write_text(str(seconds))
    if not result.finished:
        raise SystemExit(f"stopped at step {result.step}; the same command goes on")
    lines = (out / "log.jsonl").read_text().splitlines()[-20:]
    loss = sum(json.loads(line)["loss"] for line in lines) / len(lines)
    told = {"steps": steps, "minutes": round(seconds / 60, 1), "loss": round(loss, 5)}
    print(export(args.name, plan, result.average, told, args.root), told)


if __name__ == "__main__":
    main()
