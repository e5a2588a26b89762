"""The model that a training run starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdquant.clock import is_quantized
from tdquant.diffusion.sampling import stream_of
from tdquant.errors import ModelError, StorageError
from tdquant.files.looking import is_file
from tdquant.lab.opening import open_model
from tdquant.lab.run_folder import RunFolder
from tdquant.lab.runs.comparing import differences
from tdquant.models import Pipe, load_compvis
from tdquant.training.order import loader

_MAY_CHANGE = ("steps", "save_every", "sample_every", "accumulate", "correct")


def check_asked(folder: RunFolder, asked: dict[str, Any]) -> None:
    """Raises StorageError if the run in a folder was started with other arguments."""
    free = {f"options.{name}" for name in _MAY_CHANGE}
    changed = [
        line for line in differences(folder.asked(), asked) if line.split(":")[0] not in free
    ]
    if changed:
        raise StorageError(
            "there is a run with other arguments:\n  - " + "\n  - ".join(changed),
            where=str(folder.path),
            fix="another --name, or the arguments that it was started with",
        )


def start_model(config: dict[str, Any], checkpoint: str | Path | None) -> Pipe:
    """The model to start from.

    Raises:
        ModelError: It is a quantized run, or another model than the configuration describes.
    """
    if checkpoint is None or is_file(checkpoint):
        return load_compvis(config, checkpoint)
    pipe: Pipe = open_model(
        checkpoint,
        refused=dict.fromkeys(("saved", "pipeline", "exported"), "a run, or a checkpoint file"),
    ).model
    if is_quantized(pipe.unet):
        raise ModelError(
            f"{checkpoint} is quantized already",
            fix="start from the float model; --resume goes on with a quantized run",
        )
    wanted = load_compvis(config, quiet=True).unet.config
    if getattr(pipe.unet, "config", None) != wanted:
        raise ModelError(
            f"{checkpoint} is another model than the configuration describes",
            where=type(pipe.unet).__name__,
            why="a run goes on from its configuration, which must describe its UNet",
            fix="the configuration of the model; any other denoiser trains with tdq.train",
        )
    return pipe


def with_factor(
    pipe: Pipe, data: Any, batch: int, seed: int, report: Callable[[str], object]
) -> Pipe:
    """Measures the factor of the latents on the first batch, if the configuration leaves it to
    training (``scale_by_std``).
    """
    if pipe.vae is None or pipe.scale_factor is not None:
        return pipe
    images = next(iter(loader(data, batch, seed=seed)))
    streams = [stream_of(seed, i, stream=2) for i in range(len(images))]
    pipe = pipe.with_measured_factor(images.to(next(pipe.vae.parameters())), streams)
    report(f"scale_by_std: latents times {pipe.scale_factor:.5f}, measured on the first batch")
    return pipe
