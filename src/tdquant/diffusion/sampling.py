"""Sampling: integrates a denoiser over a scheduler's timesteps, from seeded noise to images.

The noise of image i depends on the seed and on i alone, so that any split over batches, processes
and restarts gives the same images.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tdquant.errors import ModelError
from tdquant.progress import track

Denoiser = Callable[..., Tensor]


def initial_noise(indices: Sequence[int], shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard normal noise for the images ``indices``, ``(len(indices), *shape)``."""
    return torch.stack([torch.randn(*shape, generator=_generator(seed, i)) for i in indices])


def _generator(seed: int, index: int, stream: int = 0) -> torch.Generator:
    mixed = (
        seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    ) % 2**63
    return torch.Generator().manual_seed(mixed)


def denoise_steps(
    model: Denoiser,
    scheduler: Any,
    steps: int,
    x: Tensor,
    generators: list[torch.Generator] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields ``(model_input, t, x_next)`` for every call on the way from noise to image.

    Arguments:
        model: Callable ``(x, t)`` that returns the prediction, a tensor or diffusers' output with
            ``.sample``.
        scheduler: A diffusers scheduler; a copy of it is used.
        steps: Number of sampler steps, 1 to the number of training timesteps.
        x: Standard normal noise ``(B, *)``.
        generators: One a sample, for schedulers that add noise.
    """
    scheduler = copy.deepcopy(scheduler)
    limit = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= limit:
        raise ModelError(
            f"{steps} sampler steps", where=type(scheduler).__name__, fix=f"1 to {limit}"
        )
    scheduler.set_timesteps(steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    extra = {"generator": generators} if generators and _takes_generator(scheduler) else {}
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        output = model(model_input, t)
        x = scheduler.step(getattr(output, "sample", output), t, x, **extra).prev_sample
        yield model_input, t, x


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters


@torch.no_grad()
def sample(
    model: Denoiser,
    scheduler: Any,
    count: int,
    shape: Sequence[int],
    *,
    steps: int = 50,
    batch: int = 64,
    seed: int = 0,
    start: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    label: str = "sampling",
) -> Tensor:
    """Samples images ``start .. start + count - 1``.

    Arguments:
        model: Callable ``(x, t)``, quantized or not.
        scheduler: A diffusers scheduler.
        count: Number of images N.
        shape: Shape of one, such as ``(3, 32, 32)``.
        steps: Sampler steps.
        batch: Images at a time.
        seed: Seed of all noise.
        start: Index of the first image.
        device: Where the model is.
        progress: Draw a bar.
        label: Words in front of it.

    Returns:
        ``(N, *shape)`` on the CPU, unclamped.

    Raises:
        ModelError: Steps, count or batch out of range.
    """
    if count < 1 or batch < 1:
        raise ModelError(f"count={count}, batch={batch}", where="sample", fix="both at least 1")
    groups = [range(i, min(i + batch, start + count)) for i in range(start, start + count, batch)]

    images: list[Tensor] = []

    def calls() -> Iterator[None]:
        for group in groups:
            x = initial_noise(group, shape, seed).to(device)
            generators = [_generator(seed, i, stream=1) for i in group]
            for _, _, done in denoise_steps(model, scheduler, steps, x, generators):
                last = done
                yield
            images.append(last.cpu())

    for _ in track(calls(), label, len(groups) * steps, progress):
        pass
    return torch.cat(images)
