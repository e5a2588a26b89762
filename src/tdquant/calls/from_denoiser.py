"""Calls of a denoiser that a scheduler samples.

PTQ4DM found that a static scale is calibrated better on timesteps drawn from a normal distribution
than on all of them alike; both are available.

References:
    Shang et al., Post-training Quantization on Diffusion Models, 2023
    (https://arxiv.org/abs/2211.15736).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdquant.diffusion.guidance import Condition
from tdquant.diffusion.sampling import (
    Denoiser,
    denoise_steps,
    initial_noise,
    scheduled,
    stream_of,
)
from tdquant.errors import ModelError
from tdquant.support.devices import device_of, dtype_of
from tdquant.support.progress import track

DISTRIBUTIONS = ("uniform", "normal")


@dataclass(frozen=True)
class Trajectories:
    """Iterable of calls ``(x (B, *), t ())``, or ``(x, t, context)`` under a condition. Every
    iteration samples again, with equal results. ``record_denoiser`` documents the fields.
    """

    model: Denoiser
    scheduler: Any
    count: int
    shape: tuple[int, ...]
    steps: int
    batch: int
    seed: int
    progress: bool
    law: str
    mean: float
    std: float
    condition: Condition | None
    device: torch.device | str

    def __len__(self) -> int:
        """Number of calls that the denoiser gets, at least the number of calls given."""
        return -(-self.count // self.batch) * self._calls_per_trajectory()

    def __iter__(self) -> Iterator[Any]:
        return track(self._calls(), "sampling calls", len(self), self.progress)

    def _calls_per_trajectory(self) -> int:
        # Schedulers of higher order make several calls a sampler step.
        return len(scheduled(self.scheduler, self.steps).timesteps)

    def _calls(self) -> Iterator[Any]:
        chosen = self._chosen()
        for first in range(0, self.count, self.batch):
            group = range(first, min(first + self.batch, self.count))
            noise = initial_noise(group, self.shape, self.seed).to(self.device)
            denoiser, copies = self.model, 1
            context: tuple[Tensor, ...] = ()
            if self.condition is not None:
                denoiser = self.condition.bound(self.model, group, self.device)
                context, copies = (self.condition.rows(group, self.device),), self.condition.copies
            generators = [stream_of(self.seed, i, stream=1) for i in group]
            dtype = dtype_of(self.model)
            steps = denoise_steps(
                denoiser, self.scheduler, self.steps, noise, generators, dtype=dtype
            )
            for keep in chosen[group.start : group.stop].T.to(self.device):
                with torch.no_grad():  # not around yield, where it would hold for the consumer
                    call = next(steps, None)
                if call is None:
                    break
                if keep.any():
                    keep = keep.repeat(copies)
                    x = call[0].repeat(copies, *[1] * (call[0].ndim - 1))
                    yield x[keep], call[1], *(rows[keep].to(x.dtype) for rows in context)

    def _chosen(self) -> Tensor:
        """Which calls to keep, bool ``(count, calls)``."""
        shape = self.count, self._calls_per_trajectory()
        if self.law == "uniform":
            return torch.ones(shape, dtype=torch.bool)
        rng = torch.Generator().manual_seed(self.seed)
        # Time runs from 1 to 0 along a trajectory; draws outside move to the nearer end.
        normal = torch.randn(shape, generator=rng, dtype=torch.float32)
        times = (self.mean + self.std * normal).clamp(0, 1)
        position = ((1 - times) * (shape[1] - 1)).round().long()
        return torch.zeros(shape, dtype=torch.bool).scatter_(1, position, True)


def record_denoiser(
    model: Denoiser,
    scheduler: Any,
    count: int,
    shape: Sequence[int],
    *,
    steps: int = 50,
    batch: int = 16,
    seed: int = 0,
    progress: bool = False,
    law: str = "uniform",
    mean: float = 0.4,
    std: float = 0.4,
    condition: Condition | None = None,
    device: torch.device | str | None = None,
) -> Trajectories:
    """Records the calls of a denoiser on ``count`` sampling trajectories, lazily and reproducibly.

    Arguments:
        model: The float model, ``(x, t)``.
        scheduler: A diffusers scheduler.
        count: Number of trajectories.
        shape: Shape of one sample.
        steps: Sampler steps.
        batch: Trajectories at a time.
        seed: Seed of the noise.
        progress: Draw a bar; what consumes the calls usually draws one already.
        law: Distribution of the kept calls over time. ``"uniform"`` keeps every call;
            ``"normal"`` makes as many draws for each trajectory as it has calls, from a normal
            distribution over time (0 is the image, 1 the noise), and keeps the calls drawn.
        mean: Mean of the normal distribution.
        std: Its standard deviation.
        condition: Embeddings for a model that takes a context; calls are then ``(x, t, context)``.
        device: Device of the inputs; that of the model if None.

    Raises:
        ModelError: Invalid count, steps, batch or law.
    """
    if count < 1 or batch < 1:
        raise ModelError(f"{count=}, {batch=}", where="trajectories", fix="both at least 1")
    if steps < 1:
        raise ModelError(f"{steps} sampler steps", where="trajectories", fix="at least 1")
    if law not in DISTRIBUTIONS:
        fix = f"one of {', '.join(DISTRIBUTIONS)}"
        raise ModelError(f"unknown distribution {law=}", where="trajectories", fix=fix)
    size, place = tuple(shape), device_of(model) if device is None else device
    return Trajectories(
        model, scheduler, count, size, steps, batch, seed, progress, law, mean, std, condition,
        place,
    )  # fmt: skip
