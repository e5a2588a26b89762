"""The embedded latent model, ``cats-ldm``: between the autoencoder, training, and the package.

    python scripts/train_cats_autoencoder.py                 # the first stage
    python scripts/cats_latent.py stage                      # ... in latent-diffusion's names
    python main.py --base configs/cats-ldm.yaml --name cats-ldm --logdir runs --n_bit_w 0 \
        --n_bit_a 0 --train True --scale_lr False --ckpt runs/cats-ae/stage.safetensors
    python scripts/cats_latent.py export                     # averaged weights, float16

``stage`` writes an untrained UNet beside the trained autoencoder; ``export`` writes what ships in
src/tdquant/models/weights: a latent-diffusion checkpoint and its configuration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tdquant.files.config import read_config
from tdquant.lab.data.cats import ATTRIBUTION
from tdquant.lab.opening import open_model
from tdquant.lab.run_folder import RunFolder
from tdquant.models import load_compvis, save_compvis

CONFIG = Path("configs/cats-ldm.yaml")
WEIGHTS = Path("src/tdquant/models/weights")


def stage(args: argparse.Namespace) -> None:
    torch.manual_seed(23)
    pipe = load_compvis(CONFIG)
    weights = load_file(args.autoencoder / "autoencoder.safetensors")
    pipe.vae.load_state_dict({k: v.float() for k, v in weights.items()})
    print(save_compvis(pipe, args.autoencoder / "stage.safetensors"))


def export(args: argparse.Namespace) -> None:
    folder = RunFolder(args.run)
    pipe = open_model(args.run).model
    file = save_compvis(pipe, WEIGHTS / "cats-ldm.safetensors")
    tensors = load_file(file)
    half = {k: v.half() if v.is_floating_point() and v.ndim else v for k, v in tensors.items()}
    for schedule in ("betas", "alphas_cumprod"):
        half[schedule] = tensors[schedule]
    save_file(half, file, metadata={"format": "pt"})
    config = read_config([CONFIG])
    last = folder.checkpoints.latest()
    autoencoder = json.loads((args.autoencoder / "autoencoder.json").read_text())
    card = {
        "config": {"model": config["model"]},
        "training": {
            **folder.asked()["options"],
            "rate": folder.asked()["rate"],
            "steps": last.step,
            "batch": config["data"]["params"]["batch_size"],
            "seconds": round(last.state["seconds"]),
            "autoencoder": {k: autoencoder[k] for k in autoencoder if k != "config"},
            "data": ATTRIBUTION,
        },
    }
    (WEIGHTS / "cats-ldm.json").write_text(json.dumps(card, indent=2) + "\n")
    print(file, file.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("stage", "export"))
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/cats-ae"))
    parser.add_argument("--run", type=Path, default=Path("runs/cats-ldm"))
    args = parser.parse_args()
    {"stage": stage, "export": export}[args.what](args)


if __name__ == "__main__":
    main()
