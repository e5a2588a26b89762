"""Trains the first stage of the embedded latent model: 32x32 cats to 8x8x4 latents and back.

    python scripts/train_cats_autoencoder.py --out runs/cats-ae    # resumes by itself when it was
    interrupted

The loss of a picture `x` with posterior `N(mu, sigma^2)`, a latent `z` drawn from it and the
reconstruction `x_hat` is

    mean |x_hat - x|  +  edges * mean |grad x_hat - grad x|  +  kl * KL(N(mu, sigma^2) || N(0, 1))

where `grad` is the difference of neighbouring pixels, which keeps thin outlines and eyes sharp,
and KL is summed over the 256 numbers of a latent. There is no perceptual network and no
discriminator.

Writes `state.pt` (everything needed to go on), `log.jsonl`, `samples.png` (held-out originals
above their reconstructions), and the weights of the moving average as float16 safetensors with
their configuration. The pictures and the noise of a step depend on the seed and the step alone, so
an interrupted run ends like an uninterrupted one. A run that resumes with another `--steps` takes
the learning rate of the new length from there on; `schedules` in the configuration lists each
length with its first step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from tdquant.lab.data.cats import ATTRIBUTION, Cats
from tdquant.lab.metrics.paired import psnr

MODEL = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 32,
}
NAME = "autoencoder"


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (step + 1) / args.warmup)
    return args.lr * warm * 0.5 * (1 + math.cos(math.pi * step / args.steps))


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures ``(B, 3, H, W)`` as floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def edge_error(difference: Tensor) -> Tensor:
    """Mean absolute error of the gradients across and down, from the difference of two batches of
    pictures ``(B, C, H, W)``: a gradient is linear."""
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside ``path`` and renames, so that ``path`` is never half written."""
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    os.replace(temporary, path)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures decoded from the mode of their posterior, in [-1, 1]."""
    decoded = [
        model.decode(model.encode(to_float(chunk)).latent_dist.mode()).sample
        for chunk in images.split(100)
    ]
    return torch.cat(decoded).clamp(-1, 1)


@torch.no_grad()
def latents(model: AutoencoderKL, images: Tensor, seed: int) -> Tensor:
    """One latent a picture ``(B, 4, 8, 8)``, drawn from its posterior."""
    rng = torch.Generator().manual_seed(seed)
    return torch.cat(
        [
            model.encode(to_float(chunk)).latent_dist.sample(generator=rng)
            for chunk in images.split(100)
        ]
    )


def comparison(model: AutoencoderKL, images: Tensor, path: Path, columns: int = 16) -> None:
    """Rows of originals, each above its row of reconstructions, four times as large."""
    from PIL import Image

    decoded = ((reconstruct(model, images) + 1) * 127.5).round().byte()
    pairs = torch.stack([images, decoded], dim=1)  # (B, 2, 3, H, W)
    height, width = images.shape[-2:]
    rows = len(images) // columns
    grid = pairs.view(rows, columns, 2, 3, height, width).permute(0, 2, 4, 1, 5, 3)
    grid = grid.reshape(rows * 2 * height, columns * width, 3)
    picture = Image.fromarray(grid.contiguous().numpy())
    picture = picture.resize((picture.width * 4, picture.height * 4), Image.NEAREST)
    replace(path, lambda file: picture.save(file, format="PNG"))


def write_artifact(
    average: dict[str, Tensor],
    train: Tensor,
    heldout: Tensor,
    args: argparse.Namespace,
    progress: dict[str, object],
) -> dict[str, float]:
    """Writes weights, configuration and picture; judges the weights as they ship, in float16."""
    weights = {k: v.half().contiguous() for k, v in average.items()}
    shipped = AutoencoderKL(**MODEL).eval()
    shipped.load_state_dict({k: v.float() for k, v in weights.items()})
    z = latents(shipped, train[:2000], args.seed)
    std = z.std().item()
    decibel = psnr(reconstruct(shipped, heldout), to_float(heldout)).mean().item()
    quality = {"psnr": round(decibel, 3), "latent_std": std}
    config = {
        "model": {"source": "diffusers", "class": "AutoencoderKL", "config": MODEL},
        "scale_factor": 1 / std,
        "latent": {
            "shape": list(z.shape[1:]),
            "std": std,
            "channel_mean": z.mean((0, 2, 3)).tolist(),
            "channel_std": z.std((0, 2, 3)).tolist(),
            "pictures": len(z),
        },
        "heldout": {"psnr": quality["psnr"], "pictures": len(heldout)},
        "parameters": sum(v.numel() for v in weights.values()),
        "training": {
            **{k: v for k, v in vars(args).items() if k != "out"},
            "loss": "l1 + edges * l1 of gradients + kl * KL summed over a latent",
            "data": ATTRIBUTION,
            **progress,
        },
    }
    replace(args.out / f"{NAME}.safetensors", lambda file: save_file(weights, file))
    text = json.dumps(config, indent=2) + "\n"
    replace(args.out / f"{NAME}.json", lambda file: file.write_text(text))
    comparison(shipped, heldout[:64], args.out / "samples.png")
    return quality


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cats-ae"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--edges", type=float, default=1.0)
    parser.add_argument("--kl", type=float, default=1e-6)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    images = Cats("train", args.images).images
    heldout = Cats("heldout", 2000).images
    model = AutoencoderKL(**MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    first, started, seconds, schedules = 0, time.time(), 0.0, [[0, args.steps]]
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, seconds = state["average"], state["step"], state["seconds"]
        schedules = state["schedules"]
        if schedules[-1][1] != args.steps:
            schedules.append([first, args.steps])
        print(f"resumed at step {first}")

    sums, count = torch.zeros(3), 0
    for step in range(first, args.steps):
        rng = torch.Generator().manual_seed(args.seed * 10_000_000 + step)
        index = torch.randint(len(images), (args.batch,), generator=rng)
        x = to_float(images[index])
        posterior = model.encode(x).latent_dist
        difference = model.decode(posterior.sample(generator=rng)).sample - x
        l1, edge, kl = difference.abs().mean(), edge_error(difference), posterior.kl().mean()
        loss = l1 + args.edges * edge + args.kl * kl
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        sums, count = sums + torch.stack([l1, edge, kl]).detach(), count + 1

        done, last = step + 1, step + 1 == args.steps
        elapsed = seconds + time.time() - started
        if done % 50 == 0:
            means = dict(zip(("l1", "edge", "kl"), (sums / count).tolist(), strict=True))
            record = {"step": done, **means, "seconds": round(elapsed, 1)}
            sums, count = torch.zeros(3), 0
            with open(args.out / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)
        if done % 250 == 0 or last:
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "average": average, "step": done, "seconds": elapsed, "schedules": schedules,
            }  # fmt: skip
            replace(state_file, lambda file, state=state: torch.save(state, file))
        if done % 1000 == 0 or last:
            progress = {"step": done, "seconds": round(elapsed), "schedules": schedules}
            quality = write_artifact(average, images, heldout, args, progress)
            print({"step": done, **quality}, flush=True)


if __name__ == "__main__":
    main()
