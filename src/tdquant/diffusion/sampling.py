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

from tdquant.diffusion.guidance import Condition
from tdquant.errors import ModelError
from tdquant.support.devices import device_of, dtype_of
from tdquant.support.progress import track
from tdquant.support.restoring import evaluating

Denoiser = Callable[..., Tensor]


def initial_noise(indices: Sequence[int], shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard normal noise for the images ``indices``, ``(len(indices), *shape)``."""
    return torch.stack(
        [torch.randn(*shape, generator=stream_of(seed, i), dtype=torch.float32) for i in indices]
    )


def stream_of(seed: int, index: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one image: they depend on the seed and its index alone."""
    mixed = (
        seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    ) % 2**63
    return torch.Generator().manual_seed(mixed)


def scheduled(scheduler: Any, steps: int, device: torch.device | str = "cpu") -> Any:
    """Copies a scheduler and sets its timesteps, one for each model call.

    Raises:
        ModelError: The scheduler has no training timesteps or no step, the number of steps is out
            of range, or the scheduler makes timesteps for it that it cannot step through: one past
            the last training timestep, or one twice.
    """
    limit = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    if limit is None or not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        raise ModelError(
            f"a {type(scheduler).__name__} cannot be stepped through",
            where="scheduler",
            why="it lacks config.num_train_timesteps, set_timesteps or step",
            fix="a scheduler of diffusers, such as DDIMScheduler(); for a sampler of your own, "
            "its calls as any iterable",
        )
    scheduler, limit = copy.deepcopy(scheduler), int(limit)
    if not 1 <= steps <= limit:
        raise ModelError(
            f"{steps} sampler steps", where=type(scheduler).__name__, fix=f"1 to {limit}"
        )
    scheduler.set_timesteps(steps, device=device)
    _check_timesteps(scheduler, steps, limit)
    return scheduler


def _check_timesteps(scheduler: Any, steps: int, limit: int) -> None:
    times = scheduler.timesteps.double()
    outside = times[(times < 0) | (times > limit - 1)]
    if hasattr(scheduler, "alphas_cumprod") and len(outside):
        raise ModelError(
            f"timestep {float(outside[0]):g} for {steps} sampler steps",
            where=type(scheduler).__name__,
            why=f"training timesteps are 0 to {limit - 1}",
            fix="fewer steps, or a scheduler with steps_offset=0",
        )
    # A solver of several steps divides by differences of log-SNR. Those that call the model
    # several times a step (order 2) and PNDM repeat timesteps on purpose.
    sigmas = getattr(scheduler, "sigmas", None)
    repeated = times.diff() == 0
    if isinstance(sigmas, Tensor) and getattr(scheduler, "order", 1) == 1 and repeated.any():
        raise ModelError(
            f"timestep {float(times[:-1][repeated][0]):g} occurs twice in {steps} sampler steps",
            where=type(scheduler).__name__,
            why="its step between equal noise levels is NaN",
            fix=f"at most {limit - 1} steps, or another timestep_spacing",
        )


def denoise_steps(
    model: Denoiser,
    scheduler: Any,
    steps: int,
    x: Tensor,
    generators: list[torch.Generator] | None = None,
    eta: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields ``(model_input, t, x_next)`` for every call from noise ``x`` ``(B, *)`` to images.

    Arguments:
        model: Callable ``(x, t)`` that returns the prediction, a tensor or diffusers' output with
            ``.sample``.
        scheduler: A diffusers scheduler; a copy of it is used.
        steps: Number of sampler steps, 1 to the number of training timesteps.
        x: Standard normal noise.
        generators: One a sample, for schedulers that add noise.
        eta: Share of DDIM's noise, 0 (none) to 1 (that of DDPM), for schedulers that have it.
        dtype: What the model computes in, where that is not the type of ``x``, in which the
            sample stays.

    Raises:
        ModelError: The number of steps is out of range, or the scheduler has no eta.
    """
    scheduler = scheduled(scheduler, steps, x.device)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has none of the two
    scale_input = getattr(scheduler, "scale_model_input", lambda x, t: x)
    known = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if generators and "generator" in known:
        extra["generator"] = generators
    if eta:
        if "eta" not in known:
            raise ModelError(f"eta={eta}", where=type(scheduler).__name__, fix="a DDIM scheduler")
        extra["eta"] = eta
    for t in scheduler.timesteps:
        model_input = scale_input(x, t).to(dtype or x.dtype)
        with evaluating(model):
            output = model(model_input, t)
        prediction = getattr(output, "sample", output).to(x.dtype)
        x = scheduler.step(prediction, t, x, **extra).prev_sample
        yield model_input, t, x


@torch.no_grad()
def generate(
    model: Denoiser,
    scheduler: Any,
    batches: Sequence[Sequence[int]],
    shape: Sequence[int],
    *,
    steps: int = 50,
    seed: int = 0,
    eta: float = 0.0,
    condition: Condition | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    label: str = "sampling",
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Samples batches of images, given by their indices; yields each with its images.

    Arguments and errors are those of ``sample``, and ``eta`` that of ``denoise_steps``.
    """
    place = device_of(model) if device is None else torch.device(device)

    def calls() -> Iterator[tuple[Sequence[int], Tensor] | None]:
        for batch in batches:
            x = initial_noise(batch, shape, seed).to(place)
            generators = [stream_of(seed, i, stream=1) for i in batch]
            denoiser = model if condition is None else condition.bound(model, batch, place)
            on_the_way = denoise_steps(
                denoiser, scheduler, steps, x, generators, eta, dtype_of(model)
            )
            _, _, x = next(on_the_way)
            for _, _, denoised in on_the_way:
                yield None  # a step of the bar; the last one comes with the images
                x = denoised
            yield batch, x.cpu()

    for done in track(calls(), label, len(batches) * steps, progress):
        if done is not None:
            yield done


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
    condition: Condition | None = None,
    device: torch.device | str | None = None,
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
        condition: Embeddings for a model that takes a context, by the index of the image.
        device: Device of the inputs; that of the model if None.
        progress: Draw a bar.
        label: Text in front of the bar.

    Returns:
        ``(N, *shape)`` on the CPU, unclamped.

    Raises:
        ModelError: Steps, count or batch out of range.
    """
    if count < 1 or batch < 1:
        raise ModelError(f"count={count}, batch={batch}", where="sample", fix="both at least 1")
    end = start + count
    batches = generate(
        model,
        scheduler,
        [range(i, min(i + batch, end)) for i in range(start, end, batch)],
        shape,
        steps=steps,
        seed=seed,
        condition=condition,
        device=device,
        progress=progress,
        label=label,
    )
    return torch.cat([images for _, images in batches])
