"""Sampling into a folder of PNGs that knows where it stopped.

Image i is ``000123.png``, and its noise depends on the seed and on i alone. Kernels round a sample
otherwise in another batch, so the batches are fixed too: batch k has the images ``k B .. (k+1) B -
1``, whichever process computes it and whichever of them exist. However the work is split over
processes and restarts, the same bytes come out, and exactly as many images as were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.diffusion.guidance import Condition
from tdquant.diffusion.pictures import save_png, to_uint8
from tdquant.diffusion.sampling import generate, scheduled
from tdquant.errors import ModelError, StorageError
from tdquant.files.digests import hash_tensors
from tdquant.files.documents import json_safe, read_json, write_json
from tdquant.files.looking import exists
from tdquant.files.workspace import clean_up
from tdquant.files.writing import creating
from tdquant.lab.runs.comparing import differences
from tdquant.models import Pipe, UNetModel
from tdquant.training.diagnose import first_not_finite

_SETTINGS = "samples.json"


def picture_path(folder: Path, index: int) -> Path:
    """Where image ``index`` is, ``000123.png``."""
    return folder / f"{index:06d}.png"


def sample_pictures(
    pipe: Pipe,
    folder: str | Path,
    count: int,
    *,
    steps: int = 200,
    batch: int = 32,
    seed: int = 23,
    start: int = 0,
    eta: float = 0.0,
    condition: Condition | None = None,
    settings: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    progress: bool = True,
    seen: Callable[[int], None] = lambda written: None,
) -> int:
    """Writes images ``start .. start + count - 1`` that are not there yet.

    Arguments:
        pipe: Denoiser, first stage, scheduler.
        folder: Where the PNGs go, ``000000.png`` onwards.
        count: Number of images.
        steps: Sampler steps, 1 to the number of training timesteps.
        batch: Images at a time.
        seed: Seed of all noise.
        start: Index of the first image.
        eta: Share of DDIM's noise.
        condition: Embeddings for a model that takes a context.
        settings: What else the images depend on, JSON-safe; kept in ``samples.json``.
        rank: This process.
        world: Number of processes that share the work.
        device: Where to sample.
        progress: Draw a bar.
        seen: Called after every batch with the number of images that this process wrote so far.

    Returns:
        The number of images that this process wrote.

    Raises:
        StorageError: The folder has images of other settings.
        ModelError: Count, steps or batch out of range; a context is missing, too many, or of
            another width; or samples are NaN or infinite: the layer or the parameters are named.
    """
    folder = Path(folder)
    _check_condition(pipe, condition)
    if start < 0 or not 0 <= eta <= 1:
        raise ModelError(f"start={start}, eta={eta}", fix="start from 0, eta from 0 to 1")
    scheduled(pipe.scheduler, steps)  # an error now, before the work
    if count < 1 or batch < 1:
        raise ModelError(f"{count} images in batches of {batch}", fix="both at least 1")
    made_with = {"model": _digest(pipe, condition), "seed": seed, "steps": steps, "eta": eta}
    made_with |= settings or {}
    is_claimed(folder, made_with)
    size = min(batch, count)
    asked = range(start, start + count)
    missing = {i for i in asked if i % (size * world) // size == rank}
    missing = {i for i in missing if not exists(picture_path(folder, i))}
    numbers = sorted({i // size for i in missing})
    pipe.unet.to(device).eval()
    if pipe.vae is not None:
        pipe.vae.to(device).eval()

    def draw(batches: list[range], progress: bool = False) -> Iterator[tuple[Any, Tensor]]:
        return generate(
            pipe.unet,
            pipe.scheduler,
            batches,
            pipe.shape,
            steps=steps,
            seed=seed,
            eta=eta,
            condition=condition,
            device=device,
            progress=progress,
        )

    batches = [range(k * size, (k + 1) * size) for k in numbers]
    written = 0
    for indices, samples in draw(batches, progress and rank == 0):
        if not samples.isfinite().all():
            _raise_not_finite(pipe, samples, partial(list, draw([indices])))
        with torch.no_grad():
            images = to_uint8(pipe.decode(samples.to(device))).cpu()
        # Not before there is an image: settings that fail leave the folder to others.
        claim_folder(folder, made_with)
        for index, image in zip(indices, images, strict=True):
            if index in missing:
                save_png(image, picture_path(folder, index))
                written += 1
        seen(written)
    return written


def _raise_not_finite(pipe: Pipe, samples: Tensor, draw_again: Callable[[], Any]) -> None:
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    raise ModelError(
        f"{bad} of {len(samples)} samples are NaN or infinite",
        where=pipe.name,
        why=first_not_finite(pipe.unet, draw_again),
        fix="whole weights of a trained model; if they are, another scheduler or number of steps",
    )


def _digest(pipe: Pipe, condition: Condition | None) -> str:
    """What the images depend on in the model: the same path can lead to another one."""
    found = hash_tensors(pipe.unet.state_dict())
    found.update(str(pipe.unet).encode())
    if pipe.vae is not None:
        found.update(hash_tensors(pipe.vae.state_dict()).digest())
    parts = {"schedule": pipe.scheduler.alphas_cumprod}
    if condition is not None:
        parts |= {
            "context": condition.context,
            "guidance": torch.tensor(condition.guidance, dtype=torch.float32),
        }
        parts |= {} if condition.empty is None else {"empty": condition.empty}
    found.update(hash_tensors(parts).digest())
    found.update(f"{pipe.shape} {pipe.scale_factor}".encode())
    return found.hexdigest()[:16]


def _check_condition(pipe: Pipe, condition: Condition | None) -> None:
    """Compares a condition with what a latent-diffusion UNet takes."""
    config: Any = getattr(pipe.unet, "config", {})
    wanted = config.get("context_dim") if isinstance(pipe.unet, UNetModel) else None
    found = None if condition is None else condition.context.shape[-1]
    if wanted == found:
        return
    takes = "no context" if wanted is None else f"a context of width {wanted}"
    given = "none is" if found is None else f"embeddings of width {found} are"
    raise ModelError(
        f"the model takes {takes}, and {given} given",
        where=pipe.name,
        fix="condition=, --embeddings FILE or --prompt TEXT, as the model wants",
    )


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Writes down what the images of a folder are made with, or checks that it is the same.

    Of processes that claim a folder at once, one writes and the others check.

    Raises:
        StorageError: The folder has images of other settings.
    """
    file = folder / _SETTINGS
    clean_up(file)
    if is_claimed(folder, settings):
        return
    with creating(file) as new:
        write_json(new, settings)
    is_claimed(folder, settings)


def is_claimed(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder has settings of its images, which are these.

    Raises:
        StorageError: They are others.
    """
    file = folder / _SETTINGS
    if not exists(file):
        return False
    changed = differences(read_json(file, _SETTINGS), json_safe(settings))
    if changed:
        raise StorageError(
            "the folder has images of other settings:\n  - " + "\n  - ".join(changed),
            where=str(folder),
            fix="another folder (--name, --out), or remove this one",
        )
    return True
