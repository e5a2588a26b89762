"""A small evaluation, for tests and, as ``python -m tests.lab.evaluation.small OUT IMAGES``, for
processes that are killed or work together.
"""

import functools
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import tdquant as tdq
from tdquant.diffusion.pictures import save_png
from tdquant.lab.evaluation import evaluate
from tdquant.lab.metrics import FeatureNetwork
from tdquant.models import load_embedded
from tests.conftest import THREADS


class Random(FeatureNetwork):
    """Random features, of every kind."""

    name, title = "random", "Random"

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.eval().requires_grad_(False)

    def run(self, images):
        h = self.conv(images.float() / 255).relu()
        pooled = h.mean((2, 3))
        return {"pooled": pooled, "logits": pooled * 5, "spatial": h[:, :1, :2, :2].flatten(1)}


@functools.lru_cache
def saved():
    """Folder of the tiny model at W4A4, the same for all processes of a session."""
    folder = Path(os.environ["TDQUANT_CACHE"]) / "tiny-w4a4"
    if not folder.exists():
        model = tdq.quantize(load_embedded("tiny").unet, tdq.Recipe(4, 4))
        calls = tdq.trajectories(load_embedded("tiny"), 2, steps=4, batch=2)
        tdq.calibrate(model, calls, progress=False)
        tdq.save(tdq.freeze(model), folder)
    return folder


def reference():
    """A folder of 16 images, the same for all processes of a session."""
    folder = Path(os.environ["TDQUANT_CACHE"]) / "set"
    rng = torch.Generator().manual_seed(7)
    for i in range(16):
        image = torch.randint(0, 256, (3, 16, 16), generator=rng, dtype=torch.uint8)
        if not (folder / f"{i}.png").exists():
            save_png(image, folder / f"{i}.png")
    return folder


def pipe():
    return replace(load_embedded("tiny"), unet=tdq.load(saved()))


OPTIONS = {
    "images": 12,
    "steps": 2,
    "batch": 4,
    "paired": 6,
    "resamples": 8,
    "network": "random",
    "backend": "simulated",
    "device": "cpu",
    "progress": False,
}


def run(out, subject=None, **options):
    options = OPTIONS | options
    if "reference" not in options:
        options["reference"] = reference()
    if options["network"] == "random":
        options["network"] = Random()
    if "against" not in options:
        options["against"] = load_embedded("tiny")
    return evaluate(subject or pipe(), out, **options)


def main():
    torch.set_num_threads(THREADS)
    out, images = sys.argv[1:]
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    run(out, images=int(images), rank=rank, world=world)


if __name__ == "__main__":
    main()
