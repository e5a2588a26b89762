"""Images of a pipe of ``tdquant.models``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.calls.from_denoiser import trajectories
from tdquant.lab.evaluation.sampling import Sampling, Seen
from tdquant.lab.evaluation.subject import (
    describe_model,
    describe_scheduler,
    digest_of,
    frozen_of,
    running,
)
from tdquant.lab.runs.pictures import sample_pictures
from tdquant.lowering.backends import time_calls
from tdquant.models import Pipe


class PipeGenerator:
    """Images of a pipe of ``tdquant.models``.

    Arguments:
        pipe: The pipe; its denoiser may be float, quantized or frozen.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = replace(pipe, unet=frozen_of(pipe.unet))
        self.name, self.model = pipe.name, self.pipe.unet
        self.digest = digest_of(self.model)
        self._first_stage = None if pipe.vae is None else digest_of(pipe.vae)
        self._running: dict[Sampling, tuple[nn.Module, str]] = {}

    def describe(self, source: str) -> dict[str, Any]:
        return describe_model(self.model, self.name, source, self.digest)

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.digest,
            "first_stage": self._first_stage,
            "scheduler": describe_scheduler(self.pipe.scheduler),
            "batch": sampling.batch,
            "backend": self.run(sampling)[1],
            "device": sampling.device.partition(":")[0],
            "shape": list(self.pipe.shape),
            "prompts": None,
        }

    def size(self) -> tuple[int, int] | None:
        if self.pipe.vae is None:
            return self.pipe.shape[-2], self.pipe.shape[-1]
        with torch.no_grad():
            device = next(self.pipe.vae.parameters()).device
            image = self.pipe.decode(torch.zeros(1, *self.pipe.shape, device=device))
        return image.shape[-2], image.shape[-1]

    def run(self, sampling: Sampling) -> tuple[nn.Module, str]:
        """The denoiser as it runs, and the name of what runs it."""
        if sampling not in self._running:
            self._running[sampling] = running(
                self.model, sampling.backend, self.pipe.shape, sampling.batch, sampling.device
            )
        return self._running[sampling]

    def write(
        self, folder: Path, count: int, sampling: Sampling, *, rank: int, world: int,
        progress: bool, seen: Seen,
    ) -> int:  # fmt: skip
        return sample_pictures(
            replace(self.pipe, unet=self.run(sampling)[0]),
            folder,
            count,
            steps=sampling.steps,
            batch=sampling.batch,
            seed=sampling.seed,
            eta=sampling.eta,
            settings=self.settings(sampling),
            rank=rank,
            world=world,
            device=sampling.device,
            progress=progress,
            seen=seen,
        )

    def calls(self, count: int, steps: int, seed: int) -> Any:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return trajectories(
            self.model,
            self.pipe.scheduler,
            count,
            self.pipe.shape,
            steps=steps,
            batch=count,
            seed=seed,
            device=device,
        )

    def milliseconds(self, count: int, sampling: Sampling) -> float | None:
        together = min(sampling.batch, count)
        noise = torch.randn(together, *self.pipe.shape, device=sampling.device)
        middle = int(self.pipe.scheduler.config.num_train_timesteps) // 2
        example = (noise, torch.tensor(middle, device=sampling.device))
        found = time_calls({"": self.run(sampling)[0]}, example, runs=3, warmup=1)
        return 1000 * found[""]
