"""Models that come with the package, and a tiny untrained one for tests and first steps.

``cats-ddpm`` is a 2.4M-parameter pixel model of 32x32 cats, ``cats-ldm`` a latent one in
latent-diffusion's layout; their cards are in the documentation.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from tdquant.errors import ModelError
from tdquant.models.build import from_description
from tdquant.models.compvis import load_compvis
from tdquant.models.pipe import Pipe
from tdquant.models.pixel_unet import PixelUNet
from tdquant.support.optional import require
from tdquant.support.thread_modes import DrawingFrom

EMBEDDED = ("cats-ddpm", "cats-ldm", "tiny")

TINY: dict[str, Any] = {
    "patch": 2,
    "unet": {
        "sample_size": 8,
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    },
}


def load_embedded(name: str = "cats-ddpm", seed: int = 0) -> Pipe:
    """Loads a model that comes with tdquant, in float32, in evaluation mode.

    Arguments:
        name: ``"cats-ddpm"`` or ``"cats-ldm"``, trained, or ``"tiny"``, 16x16 and random.
        seed: Seed of the weights of ``"tiny"``.

    Raises:
        ModelError: No such model.
        MissingDependencyError: diffusers is not installed.
    """
    if name not in EMBEDDED:
        raise ModelError(f"no embedded model {name!r}", fix=f"one of {', '.join(EMBEDDED)}")
    scheduler = require("diffusers", "diffusers").DDIMScheduler
    if name == "tiny":
        with DrawingFrom(torch.Generator().manual_seed(seed)):
            unet: nn.Module = PixelUNet(**TINY)
        return Pipe(unet.eval(), None, scheduler(clip_sample=False), (3, 16, 16), name)
    folder = resources.files("tdquant.models") / "weights"
    spec = json.loads((folder / f"{name}.json").read_text())
    if "config" in spec:
        with resources.as_file(folder / f"{name}.safetensors") as file:
            return load_compvis(spec["config"], file, ema=False, quiet=True)
    unet = from_description(spec["model"], where=name)
    weights = load((folder / f"{name}.safetensors").read_bytes())
    unet.load_state_dict({k: v.float() for k, v in weights.items()})
    return Pipe(unet.eval(), None, scheduler(**spec["scheduler"]), tuple(spec["shape"]), name)
