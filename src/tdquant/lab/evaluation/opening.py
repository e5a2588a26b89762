"""Opening what is to be evaluated by its path or name, with the parts that it needs to sample."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdquant.diffusion import make_scheduler
from tdquant.errors import ModelError, StorageError
from tdquant.lab.bench.subject import sample_shape
from tdquant.lab.runs import RunFolder, open_pipe
from tdquant.models import EMBEDDED, Pipe, build, load_embedded
from tdquant.storage import INDEX, load
from tdquant.storage.diffusers_folder import PIPELINE, read_config
from tdquant.storage.files import read_index
from tdquant.support.optional import require


def open_subject(
    source: str | Path,
    *,
    parts: str | Path | None = None,
    config: Any = None,
    shape: tuple[int, ...] | None = None,
    scheduler: str | None = None,
    ema: bool = True,
    overrides: tuple[str, ...] = (),
) -> tuple[Any, str | None]:
    """What samples: a pipe, or a diffusers pipeline from its folder.

    Arguments:
        source: An embedded model's name, a folder of ``tdq.save`` or of a training run, a
            checkpoint file, or a pipeline's folder.
        parts: For a saved denoiser: name or path of the pipe whose scheduler and first stage it
            takes. None finds the run that it lies in, or an embedded model of the same
            architecture, and else takes the usual linear schedule.
        config: Configuration of a checkpoint file, be it the source or the parts.
        shape: Shape of a sample, where a saved denoiser does not tell.
        scheduler: Name of a sampler to take in the place of the model's own.
        ema: Take averaged parameters of runs and checkpoints.
        overrides: ``key.path=value`` changes to the configuration.

    Returns:
        It, and the name of the float model that a saved denoiser is to be compared with, if that
        is known.

    Raises:
        StorageError: There is no such thing, or it is damaged.
        ModelError: Parts are missing, or do not fit.
    """
    path, twin = Path(source), None
    given = {"config": config, "ema": ema, "overrides": overrides}
    if path.is_dir() and (path / PIPELINE).exists():
        pipe: Any = require("diffusers", "diffusers").DiffusionPipeline.from_pretrained(path)
        if scheduler:
            pipe.scheduler = make_scheduler(scheduler, pipe.scheduler)
        return pipe, None
    if path.is_dir() and ((path / INDEX).exists() or read_config(path) is not None):
        pipe, twin = _saved(path, parts, shape, given)
    else:
        pipe = open_pipe(source, **given)
        name = path.resolve().name if path.exists() else str(source)
        pipe = replace(pipe, name=name)
    if scheduler:
        pipe = replace(pipe, scheduler=make_scheduler(scheduler, pipe.scheduler))
    return pipe, twin


def _saved(
    folder: Path, parts: str | Path | None, shape: tuple[int, ...] | None, given: dict[str, Any]
) -> tuple[Pipe, str | None]:
    """A saved denoiser among the parts that it samples with, and its float twin's name."""
    model, name = load(folder), folder.resolve().name
    around = _run_of(folder) if parts is None else parts
    twin = _twin(folder) if around is None else None
    if around is not None or twin is not None:
        pipe = open_pipe(str(twin)) if around is None else open_pipe(around, **given)
        if around is not None and (str(around) in EMBEDDED or Path(around).is_file()):
            twin = str(around)  # of a run, the model is quantized itself
        own = shape or sample_shape(model)
        if own is not None and tuple(own) != tuple(pipe.shape):
            raise ModelError(
                f"a model of samples {tuple(own)} in a pipe of {tuple(pipe.shape)}",
                where=str(folder),
                fix="--pipe the model that it was made from",
            )
        return replace(pipe, unet=model, name=name), twin
    shape = shape or sample_shape(model)
    if shape is None:
        raise ModelError(
            "the shape of a sample is not known",
            where=str(folder),
            why="the model's configuration does not tell",
            fix="--pipe the model that it was made from, or --shape, such as 3,32,32",
        )
    warnings.warn(
        f"{folder}: noise schedule and prediction of the model are not known; it is sampled by "
        "DDPM's linear schedule, as one that predicts noise (--pipe tells)",
        stacklevel=3,
    )
    schedule = require("diffusers", "diffusers").DDIMScheduler(clip_sample=False)
    return Pipe(model, None, schedule, shape, name), None


def _run_of(folder: Path) -> Path | None:
    """The training run whose frozen model this is."""
    run = RunFolder(folder.resolve().parent)
    return run.path if run.exists and run.frozen == folder.resolve() else None


def _twin(folder: Path) -> str | None:
    """The embedded model of the same architecture."""
    try:
        spec = read_index(folder)["model"]
    except StorageError:
        return None
    for name in EMBEDDED:
        own = json.loads(json.dumps(build.description(load_embedded(name).unet)))
        if own is not None and own == spec:
            return name
    return None
