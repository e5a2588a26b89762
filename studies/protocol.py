"""What the studies share: the models, their data, and how a quantized model is judged.

A model is judged by samples from fixed noise: their Frechet EfficientNet-Lite0 distance to 5,000
held-out cats, and their error against the float model's samples from the same noise, mean and
median over the images, clamped to [-1, 1]. Latent models are judged on decoded images.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import small_models
import tdquant as tdq
from tdquant.lab.metrics import FrechetDistance, mse
from tdquant.models import Pipe
from tdquant.models.embedded import EMBEDDED
from tdquant.training import DiffusionObjective, Training
from tdquant.training.order import loader

MODELS = ("cats-ddpm", "cats-ldm")
NOISE = 77
"""Seed of the noise that every model is judged on; calibration and training use others."""

WORST = 4.0
"""Squared error of an image that is not finite: the largest there is in [-1, 1]."""


def load(name: str) -> Pipe:
    """An embedded model, or one of studies/models."""
    return tdq.models.load_embedded(name) if name in EMBEDDED else small_models.load(name)


class Latents(Dataset):
    """What the denoiser is trained on: images, or the latents of a first stage, encoded once."""

    def __init__(self, pipe: Pipe, count: int) -> None:
        images = tdq.data.Cats("train", count)
        if pipe.vae is None:
            self.items: Any = images
        else:
            with torch.no_grad():
                parts = [
                    pipe.encode(torch.stack([images[j] for j in range(i, min(i + 64, count))]))
                    for i in range(0, count, 64)
                ]
            self.items = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.items[index]


class Remembered(nn.Module):
    """A teacher that keeps its answers: every run of a seed trains on the same batches.

    Arguments:
        model: The float model.
        most: Answers to keep; None keeps all.
    """

    def __init__(self, model: nn.Module, most: int | None = None) -> None:
        super().__init__()
        self.model, self.most, self.answers = model, most, {}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        asked = x.numpy().tobytes() + t.numpy().tobytes()
        key = hashlib.blake2b(asked, digest_size=16).digest()
        if key in self.answers:
            return self.answers[key]
        answer = self.model(x, t)
        if self.most is None or len(self.answers) < self.most:
            self.answers[key] = answer
        return answer


def last_losses(training: Training) -> float:
    """Mean loss of the last fifth of the steps.

    Raises:
        SystemExit: The run was stopped before its last step, and is no result.
    """
    if not training.finished:
        raise SystemExit(f"stopped at step {training.step}; this run is not kept")
    losses = training.losses[-max(len(training.losses) // 5, 1) :]
    return sum(losses) / len(losses)


@dataclass
class Subject:
    """One model and what its quantized forms are compared with.

    Attributes:
        name: Of the model, embedded or in studies/models.
        images: Samples a judgement takes.
        steps: Sampler steps of them.
        items: Training images.
    """

    name: str
    images: int
    steps: int
    items: int = 4096

    @cached_property
    def pipe(self) -> Pipe:
        return load(self.name)

    @cached_property
    def distance(self) -> FrechetDistance:
        return FrechetDistance()

    @cached_property
    def data(self) -> Latents:
        return Latents(self.pipe, self.items)

    @cached_property
    def teacher(self) -> Remembered:
        """The float model as training asks it."""
        return Remembered(copy.deepcopy(self.pipe.unet))

    @cached_property
    def exact(self) -> Tensor:
        """The float model's images."""
        return self.pictures(self.pipe.unet)

    def quantized(self, recipe: tdq.Recipe) -> nn.Module:
        """A quantized copy of the float model, not calibrated."""
        return tdq.quantize(copy.deepcopy(self.pipe.unet), recipe)

    def noised(self, batch: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Calls as training makes them: noised items at random timesteps."""
        objective = DiffusionObjective(self.pipe.scheduler)
        items = iter(loader(self.data, batch, seed=seed))
        for k in range(count):
            drawn = objective.draw(next(items), seed + 1, k, range(batch), "cpu")
            yield drawn.x_t, drawn.t

    def pictures(
        self,
        model: nn.Module,
        scheduler: Any = None,
        steps: int | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Images in [-1, 1] from the fixed noise."""
        samples = tdq.sample(
            model, scheduler or self.pipe.scheduler, count or self.images, self.pipe.shape,
            steps=steps or self.steps, batch=64, seed=NOISE, progress=False,
        )  # fmt: skip
        with torch.no_grad():
            return torch.cat([self.pipe.decode(part) for part in samples.split(64)]).clamp(-1, 1)

    def corrected(self, frozen: nn.Module, trajectories: int, steps: int, seed: int) -> nn.Module:
        """The frozen model with a gain that was fitted on samples of its own."""
        own = tdq.trajectories(
            frozen, self.pipe.scheduler, trajectories, self.pipe.shape, batch=trajectories,
            steps=steps, seed=seed,
        )  # fmt: skip
        return tdq.correct(frozen, self.pipe.unet, own, bias=False, progress=False)

    def errors(self, model: nn.Module) -> Tensor:
        """Squared error of each image of a model against the float model's, ``(N,)``."""
        return mse(self.pictures(model), self.exact).nan_to_num(WORST)

    def judge(
        self, frozen: nn.Module, keep: Callable[[Tensor], None] | None = None
    ) -> dict[str, float]:
        """Distance and paired error of a frozen model, run on integers where they hold exactly;
        ``keep`` gets the images.
        """
        images = self.pictures(tdq.compile(frozen, "onednn"))
        if keep is not None:
            keep(images)
        each = mse(images, self.exact)
        return {
            "frechet": self.distance(images),
            "paired_mse": float(each.mean()),
            "paired_median": float(each.median()),
        }

    def judge_float(self) -> dict[str, float]:
        """The distance of the float model."""
        return {"frechet": self.distance(self.exact), "paired_mse": 0.0, "paired_median": 0.0}
