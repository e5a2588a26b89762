"""The Python blocks of a page, and how they are run: as printed, but with fewer of everything."""

import copy
import functools
import re
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import tdquant as tdq
from tdquant.models import PixelUNet
from tdquant.models.pipe import Pipe

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"


def programs(page, section=""):
    """The Python blocks of a page, or of one section of it."""
    text = page.read_text()
    if section:
        text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    found = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert found, f"no program in {page.name}, {section}"
    return found


def run(program, namespace=None, **changed):
    """Runs a program with some words of it changed; gives its variables."""
    for word, other in changed.items():
        assert word in program
        program = program.replace(word, other)
    variables = {} if namespace is None else namespace
    exec(compile(program, "documentation", "exec"), variables)
    return variables


def run_all(page, fewer=None, namespace=None):
    """Runs all blocks of a page one after the other, with words of ``fewer`` changed wherever they
    are; each must be there.
    """
    variables, left = {} if namespace is None else namespace, dict(fewer or {})
    for program in programs(page):
        changed = {word: other for word, other in (fewer or {}).items() if word in program}
        for word in changed:
            left.pop(word, None)
        run(program, variables, **changed)
    assert not left, f"not in {page.name}: {', '.join(left)}"
    return variables


@functools.cache
def _small_unet():
    torch.manual_seed(0)
    unet = {
        "sample_size": 8,
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [8],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
        "mid_block_type": None,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return PixelUNet(patch=2, unet=unet).eval()


def small_pipe(name="cats-ddpm"):
    """A very small model in the place of an embedded one, with layers of the same names."""
    scheduler = DDIMScheduler(clip_sample=False)
    return Pipe(copy.deepcopy(_small_unet()), None, scheduler, (3, 16, 16), name)


@functools.cache
def _small_frozen():
    pipe = small_pipe()
    model = tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=8))
    calls = tdq.trajectories(small_pipe(), 2, steps=6)
    tdq.calibrate(model, calls, estimator="mse", progress=False)
    return tdq.freeze(model)


def small_frozen():
    """That model at W4A8, frozen."""
    return copy.deepcopy(_small_frozen())
