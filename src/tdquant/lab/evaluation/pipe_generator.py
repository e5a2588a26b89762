"""Images of a pipe of ``tdquant.models``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.calls import record_denoiser
from tdquant.lab.evaluation.config import EvaluationConfig
from tdquant.lab.evaluation.generator import Generator, Sampling
from tdquant.lab.evaluation.subject import (
    digest_of,
    frozen_of,
    running,
)
from tdquant.lab.runs.pictures import sample_pictures
from tdquant.lowering.backends import time_calls
from tdquant.models import Pipe


class PipeGenerator(Generator):
    """Images of a pipe of ``tdquant.models``.

    Arguments:
        pipe: The pipe; its denoiser may be float, quantized or frozen.
    """

    def __init__(self, pipe: Pipe) -> None:
        model = frozen_of(pipe.unet)
        super().__init__(pipe.name, model, digest_of(model), pipe.vae, pipe.scheduler)
        self.pipe = replace(pipe, unet=model)
        self._running: dict[Sampling, tuple[nn.Module, str]] = {}

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        return super().settings(sampling) | {"shape": list(self.pipe.shape)}

    def size(self) -> tuple[int, int] | None:
        if self.pipe.vae is None:
            return self.pipe.shape[-2], self.pipe.shape[-1]
        with torch.no_grad():
            device = next(self.pipe.vae.parameters()).device
            latent = torch.zeros(1, *self.pipe.shape, device=device, dtype=torch.float32)
            image = self.pipe.decode(latent)
        return image.shape[-2], image.shape[-1]

    def run(self, sampling: Sampling) -> tuple[nn.Module, str]:
        """The denoiser as it runs, and the name of what runs it."""
        if sampling not in self._running:
            self._running[sampling] = running(
                self.model, sampling.backend, self.pipe.shape, sampling.batch, sampling.device
            )
        return self._running[sampling]

    def backend(self, sampling: Sampling) -> str:
        return self.run(sampling)[1]

    def write(
        self,
        folder: Path,
        count: int,
        sampling: Sampling,
        config: EvaluationConfig,
        on_batch: Callable[[int], None],
    ) -> int:
        return sample_pictures(
            replace(self.pipe, unet=self.run(sampling)[0]),
            folder,
            count,
            steps=sampling.steps,
            batch=sampling.batch,
            seed=sampling.seed,
            eta=sampling.eta,
            settings=self.settings(sampling),
            rank=config.rank,
            world=config.world,
            device=sampling.device,
            progress=config.progress,
            seen=on_batch,
        )

    def calls(self, count: int, steps: int, seed: int) -> Any:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return record_denoiser(
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
        noise = torch.randn(
            together, *self.pipe.shape, device=sampling.device, dtype=torch.float32
        )
        middle = int(self.pipe.scheduler.config.num_train_timesteps) // 2
        example = (noise, torch.tensor(middle, device=sampling.device))
        found = time_calls({"": self.run(sampling)[0]}, example, runs=3, warmup=1)
        return 1000 * found[""]
