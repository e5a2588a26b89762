"""The models that quantizers are compared on: their calls, and the error of their samples."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.peer import Call, Denoiser
from torch import Tensor, nn

import tdquant as tdq
from tdquant.lab.metrics import mse
from tdquant.models.embedded import EMBEDDED

STUDIES = Path(__file__).parents[2] / "studies"
SEEDS = {"calibration": 1, "trials": 3, "test": 77, "order": 0}
RECORDED = {"count": 16, "steps": 50, "batch": 16}
TRIED = {"images": 16, "steps": 20}


def load(name: str) -> Any:
    """A model by its name or folder: one that comes with tdquant, or one of studies/models."""
    name = Path(name).name
    if name in EMBEDDED:
        return tdq.models.load_embedded(name)
    sys.path.insert(0, str(STUDIES))
    try:
        from small_models import load
    finally:
        sys.path.remove(str(STUDIES))
    return load(name)


@dataclass
class World:
    """A float model and what it is sampled with.

    Arguments:
        name: Name or folder of the model.
        images: Samples that the error is a mean over.
        steps: Sampler steps.
        batch: Samples at a time.
    """

    name: str
    images: int
    steps: int
    batch: int

    def __post_init__(self) -> None:
        self.pipe = load(self.name)
        self.name = Path(self.name).name

    def fresh(self) -> nn.Module:
        """A copy of the float model."""
        return copy.deepcopy(self.pipe.unet)

    @cached_property
    def calls(self) -> list[Call]:
        """Calls of the float model, in random order: an average that forgets must not see the
        times in theirs.
        """
        calls = list(
            tdq.trajectories(
                self.pipe.unet, self.pipe.scheduler, shape=self.pipe.shape,
                seed=SEEDS["calibration"], progress=False, **RECORDED,
            )
        )  # fmt: skip
        random.Random(SEEDS["order"]).shuffle(calls)
        return calls

    def call(self, batch: int) -> Call:
        """A call of that many samples, in the middle of the recorded times."""
        times = sorted(float(t.reshape(-1)[0]) for _, t in self.calls)
        middle = times[len(times) // 2]
        x, t = next(call for call in self.calls if float(call[1].reshape(-1)[0]) == middle)
        return x[torch.arange(batch) % len(x)], t.reshape(-1)[0]

    def draw(self, model: Denoiser, images: int, steps: int, seed: int, batch: int) -> Tensor:
        """Samples, decoded to images if the model is of latents."""
        pipe = self.pipe
        found = tdq.sample(
            model, pipe.scheduler, images, pipe.shape, steps=steps, batch=batch, seed=seed,
            device="cpu", progress=False,
        )  # fmt: skip
        if pipe.vae is None:
            return found
        with torch.no_grad():
            return torch.cat([pipe.decode(part) for part in found.split(32)])

    def test(self, model: Denoiser) -> Tensor:
        return self.draw(model, self.images, self.steps, SEEDS["test"], self.batch)

    def generate(self, model: Denoiser) -> Tensor:
        """Samples for those that judge by samples, of noise that the test does not use."""
        return self.draw(model, TRIED["images"], TRIED["steps"], SEEDS["trials"], TRIED["images"])

    @cached_property
    def exact(self) -> Tensor:
        return self.test(self.pipe.unet)

    def prepare(self, apart: Callable[..., Any]) -> None:
        """Records calls and draws the exact samples, in a process of its own."""
        if "exact" not in self.__dict__:
            self.calls, self.exact = apart(lambda: (self.calls, self.exact))

    def error(self, model: Denoiser) -> dict[str, float]:
        """Mean, median and geometric mean over images of the squared error of the model's samples
        against the float model's from the same noise.
        """
        each = mse(self.test(model), self.exact).double()
        return {
            "mean": float(each.mean()),
            "median": float(each.median()),
            "geometric": float(each.log().mean().exp()),
        }
