"""A latent-diffusion configuration that trains in seconds, and folders of pictures for it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tdquant.models import load_compvis, save_compvis

CONFIG = {
    "model": {
        "base_learning_rate": 1e-4,
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "timesteps": 1000,
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "loss_type": "l1",
            "scale_by_std": True,
            "image_size": 4,
            "channels": 4,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 4,
                    "in_channels": 4,
                    "out_channels": 4,
                    "model_channels": 32,
                    "channel_mult": [1],
                    "num_res_blocks": 1,
                    "attention_resolutions": [1],
                    "num_heads": 2,
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": 8,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 32,
                        "ch_mult": [1, 1],
                        "num_res_blocks": 1,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                    },
                    "lossconfig": {"target": "torch.nn.Identity"},
                },
            },
        },
    },
    "data": {"params": {"batch_size": 4, "num_workers": 0}},
    "tdquant": {"steps": 4, "warmup": 0, "save_every": 2, "calibration_batches": 2},
}


def workspace(folder: Path):
    """Writes ``config.yaml``, ``data/`` and ``model.safetensors``; returns their folder."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    (folder / "data").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "data" / f"{i}.png")
    config = copy.deepcopy(CONFIG)
    config["data"]["params"]["train"] = {
        "target": "tdquant.data.folder",
        "params": {"root": str(folder / "data"), "size": 8},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    torch.manual_seed(0)
    # As if the factor of the latents had been measured in training.
    pipe = replace(load_compvis(folder / "config.yaml"), scale_factor=1.0)
    with torch.no_grad():  # what starts at zero could not be quantized
        for parameter in pipe.unet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    save_compvis(pipe, folder / "model.safetensors")
    return folder
