"""Trains the embedded pixel model, `cats-ddpm`: v-prediction on 32x32 cats, from nothing.

    python scripts/train_cats.py --out runs/cats            # resumes by itself when it was
    interrupted

Writes `state.pt` (everything needed to go on), `log.jsonl`, `samples.png`, and at the end the
weights of the moving average as float16 safetensors with their configuration, in the form in which
they ship in `src/tdquant/models/weights/`. Batch, timesteps and noise of a step depend on the seed
and the step alone, so an interrupted run ends like an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from tdquant.lab.data.cats import ATTRIBUTION, Cats
from tdquant.models.pixel_unet import PixelUNet

MODEL = {
    "patch": 2,
    "unet": {
        "sample_size": 16,
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [48, 96, 96],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 3,
        "norm_num_groups": 16,
        "attention_head_dim": 96,
    },
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (step + 1) / args.warmup)
    return args.lr * warm * 0.5 * (1 + math.cos(math.pi * step / args.steps))


def save_state(path: Path, **state: object) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@torch.no_grad()
def sample_grid(model: torch.nn.Module, path: Path, count: int = 64, steps: int = 50) -> None:
    from PIL import Image

    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample
    side = int(count**0.5)
    grid = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
    grid = grid.view(side, side, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(side * 32, side * 32, 3)
    Image.fromarray(grid.numpy()).resize((side * 64, side * 64), Image.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cats"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    images = Cats("train", args.images).images
    model = PixelUNet(**MODEL).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    alpha_bar = DDIMScheduler(**SCHEDULER).alphas_cumprod
    first, started, seconds = 0, time.time(), 0.0
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, seconds = state["average"], state["step"], state["seconds"]
        print(f"resumed at step {first}")

    losses: list[float] = []
    for step in range(first, args.steps):
        rng = torch.Generator().manual_seed(args.seed * 10_000_000 + step)
        index = torch.randint(len(images), (args.batch,), generator=rng)
        x = images[index].float() / 127.5 - 1
        t = torch.randint(len(alpha_bar), (args.batch,), generator=rng)
        noise = torch.randn(x.shape, generator=rng)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        signal, sigma = a.sqrt(), (1 - a).sqrt()
        loss = F.mse_loss(model(signal * x + sigma * noise, t), signal * noise - sigma * x)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            elapsed = seconds + time.time() - started
            record = {
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "seconds": round(elapsed, 1),
            }
            losses.clear()
            with open(args.out / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save_state(
                state_file, model=model.state_dict(), optimizer=optimizer.state_dict(),
                average=average, step=step + 1, seconds=seconds + time.time() - started,
            )  # fmt: skip
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            ema = PixelUNet(**MODEL)
            ema.load_state_dict(average)
            sample_grid(ema.eval(), args.out / "samples.png")

    weights = {k: v.half().contiguous() for k, v in average.items()}
    save_file(weights, args.out / "cats-ddpm.safetensors")
    config = {
        "model": {"source": "tdquant", "class": "PixelUNet", "config": MODEL},
        "scheduler": SCHEDULER,
        "shape": [3, 32, 32],
        "training": {
            **{k: v for k, v in vars(args).items() if k != "out"},
            "loss": "mse of v",
            "data": ATTRIBUTION,
            "seconds": round(seconds + time.time() - started),
        },
    }
    (args.out / "cats-ddpm.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
