"""Trajectories: the calls that a denoiser gets while it samples, which is what calibration has to
see.

PTQ4DM found that calls drawn from a normal distribution over time, rather than evenly, calibrate a
static scale better; both draws are here.

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
from tdquant.diffusion.sampling import Denoiser, denoise_steps, initial_noise, scheduled
from tdquant.errors import ModelError

LAWS = ("uniform", "normal")


@dataclass(frozen=True)
class Trajectories:
    """Iterable of calls ``(x (B, *), t ())``, or ``(x, t, context)`` under a condition; each
    iteration samples anew, with equal results.

    Made by ``trajectories``, which says what the fields are.
    """

    model: Denoiser
    scheduler: Any
    count: int
    shape: tuple[int, ...]
    steps: int
    batch: int
    seed: int
    law: str
    mean: float
    std: float
    device: torch.device | str
    condition: Condition | None = None

    def __len__(self) -> int:
        """Number of the denoiser's calls over all batches, at least the number of calls given."""
        return -(-self.count // self.batch) * self._positions()

    def _positions(self) -> int:
        """Calls on one trajectory: schedulers of higher order make several a step."""
        return len(scheduled(self.scheduler, self.steps).timesteps)

    def __iter__(self) -> Iterator[Any]:
        chosen = self._chosen()
        for first in range(0, self.count, self.batch):
            group = range(first, min(first + self.batch, self.count))
            noise = initial_noise(group, self.shape, self.seed).to(self.device)
            denoiser, copies = self.model, 1
            context: tuple[Tensor, ...] = ()
            if self.condition is not None:
                denoiser = self.condition.bound(self.model, group, self.device)
                context, copies = (self.condition.rows(group, self.device),), self.condition.copies
            # The mode is left between yields: a generator must not change it for its consumer.
            steps = denoise_steps(denoiser, self.scheduler, self.steps, noise)
            for position in range(chosen.shape[1]):
                with torch.no_grad():
                    call = next(steps, None)
                if call is None:
                    break
                keep = chosen[group.start : group.stop, position].to(self.device)
                if keep.any():
                    keep = keep.repeat(copies)
                    x = call[0].repeat(copies, *[1] * (call[0].ndim - 1))
                    yield x[keep], call[1], *(rows[keep] for rows in context)

    def _chosen(self) -> Tensor:
        """Which calls to keep, bool ``(count, calls)``."""
        many = self._positions()
        if self.law == "uniform":
            return torch.ones(self.count, many, dtype=torch.bool)
        rng = torch.Generator().manual_seed(self.seed)
        draws = self.mean + self.std * torch.randn(self.count, many, generator=rng)
        # Time runs from 1 to 0 along a trajectory; a draw outside is drawn to the nearer end.
        position = ((1 - draws.clamp(0, 1)) * (many - 1)).round().long()
        return torch.zeros(self.count, many, dtype=torch.bool).scatter_(1, position, True)


def trajectories(
    model: Denoiser,
    scheduler: Any,
    count: int,
    shape: Sequence[int],
    *,
    steps: int = 50,
    batch: int = 16,
    seed: int = 0,
    law: str = "uniform",
    mean: float = 0.4,
    std: float = 0.4,
    condition: Condition | None = None,
    device: torch.device | str = "cpu",
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
        law: ``"uniform"`` keeps every call; ``"normal"`` keeps, of each trajectory, the calls that
            as many draws as there are steps hit, from a normal distribution over time (0 is the
            image, 1 the noise).
        mean: Mean of that distribution.
        std: Its standard deviation.
        condition: Embeddings for a model that takes a context; the calls are then ``(x, t,
            context)``.
        device: Where the model is.

    Raises:
        ModelError: A count, step count, batch or law that cannot be.
    """
    if count < 1 or batch < 1:
        raise ModelError(f"{count=}, {batch=}", where="trajectories", fix="both at least 1")
    if law not in LAWS:
        raise ModelError(f"no law {law!r}", where="trajectories", fix=f"one of {', '.join(LAWS)}")
    return Trajectories(
        model, scheduler, count, tuple(shape), steps, batch, seed, law, mean, std, device,
        condition,
    )  # fmt: skip
