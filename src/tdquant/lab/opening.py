"""Opening a model, wherever it comes from; every command takes the same sources."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.clock import is_quantized
from tdquant.diffusion import make_scheduler
from tdquant.errors import ModelError, StorageError
from tdquant.files.looking import exists, is_folder
from tdquant.freezing import freeze, is_frozen
from tdquant.integrations.pipelines.folder import load_pipeline
from tdquant.lab.run_folder import RunFolder
from tdquant.lab.sample_shapes import sample_shape
from tdquant.lowering import open_session
from tdquant.models import EMBEDDED, Pipe, build, load_compvis, load_embedded
from tdquant.storage import INDEX, load
from tdquant.storage.diffusers_folder import PIPELINE, read_config
from tdquant.storage.files import read_index
from tdquant.support.optional import require

KINDS = {
    "embedded": "an embedded model",
    "saved": "a folder of tdq.save",
    "run": "a training run or a checkpoint of one",
    "checkpoint": "a checkpoint file",
    "pipeline": "a diffusers pipeline",
    "exported": "an exported file",
}
"""The kinds of sources, in words."""

_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin", ".xml", ".onnx", ".json", ".yaml")


@dataclass(frozen=True)
class Opened:
    """A model that was opened.

    Attributes:
        kind: What its source is, one of ``KINDS``.
        source: Its path or name.
        model: A Pipe; of a pipeline the diffusers pipeline, of an exported file the session.
        twin: Source of the float model that a saved denoiser was made from, if that is known.
    """

    kind: str
    source: str
    model: Any
    twin: str | None = None

    def frozen(self) -> nn.Module:
        """The denoiser of a Pipe, frozen if it still learns.

        Raises:
            ModelError: It is a float model.
        """
        unet = self.model.unet
        if not is_quantized(unet):
            raise ModelError(
                "the model is not quantized",
                where=self.source,
                fix="tdquant quantize, or tdq.quantize, first",
            )
        return unet if is_frozen(unet) else freeze(unet)


def kind_of(source: str | Path, refused: Mapping[str, str] | None = None) -> str:
    """What a source is, without opening it. Paths that exist come before names.

    Arguments:
        source: Path or name.
        refused: Kinds that the caller does not take, and what its user can do instead.

    Raises:
        StorageError: There is no such thing.
        ModelError: The kind is refused.
    """
    path, name = Path(source), str(source)
    if is_folder(path):
        saved = exists(path / INDEX) or read_config(path) is not None
        kind = "pipeline" if exists(path / PIPELINE) else "saved" if saved else "run"
    elif exists(path):
        kind = "exported" if path.suffix in (".xml", ".onnx") else "checkpoint"
    elif name in EMBEDDED:
        kind = "embedded"
    elif _HUB.fullmatch(name) and path.suffix not in _FILES:
        kind = "pipeline"
    else:
        raise StorageError(
            "no such model",
            where=name,
            fix=f"a path, one of {', '.join(EMBEDDED)}, or OWNER/NAME of a pipeline on the hub",
        )
    if refused and kind in refused:
        raise ModelError(f"{KINDS[kind]} is not taken here", where=name, fix=refused[kind])
    return kind


def open_model(
    source: str | Path,
    *,
    config: str | Path | Sequence[str | Path] | None = None,
    ema: bool = True,
    overrides: Sequence[str] = (),
    text_encoder: str | Path | None = None,
    parts: str | Path | None = None,
    alone: bool = False,
    shape: tuple[int, ...] | None = None,
    scheduler: str | None = None,
    dtype: torch.dtype | None = None,
    refused: Mapping[str, str] | None = None,
) -> Opened:
    """Opens a model from any of

    - the name of an embedded model;
    - a folder of ``tdq.save``, or of ``save_pretrained`` of a quantized denoiser;
    - the folder of a training run, or one of its checkpoints;
    - a latent-diffusion checkpoint file, which needs ``config``;
    - the folder of a diffusers pipeline, or its name on the hub;
    - a file of ``tdq.export``.

    Arguments:
        source: Path or name.
        config: YAML configuration of a checkpoint file, be it the source or the parts.
        ema: Take averaged parameters of runs and checkpoint files.
        overrides: ``key.path=value`` changes to the configuration of a run or checkpoint file.
        text_encoder: Folder of the text encoder of a text-to-image checkpoint file.
        parts: For a saved denoiser: source of the scheduler and first stage that it samples with.
            None finds the run that it lies in, or an embedded model of the same architecture, and
            else takes the usual linear schedule.
        alone: Open a saved denoiser without parts to sample with: the Pipe has no scheduler.
        shape: Shape of a sample, for a saved denoiser whose configuration does not have it.
        scheduler: Name of a sampler that replaces the model's own.
        dtype: Type to load a diffusers pipeline in.
        refused: As for ``kind_of``.

    Raises:
        StorageError: There is no such thing, or it is damaged.
        ModelError: Something is missing or does not fit, or the kind is refused.
    """
    kind, path, twin = kind_of(source, refused), Path(source), None
    if text_encoder is not None and kind != "checkpoint":
        raise ModelError(
            f"a text encoder for {KINDS[kind]}",
            where=str(source),
            fix="leave it out: it belongs to a text-to-image checkpoint file",
        )
    if kind in ("pipeline", "exported") or (alone and kind == "saved"):
        _check_overrides(source, overrides)
    given: dict[str, Any] = {"config": config, "ema": ema, "overrides": overrides}
    model: Any
    if kind == "pipeline":
        model = load_pipeline(source, dtype)
    elif kind == "exported":
        model = open_session(path)
    elif kind == "saved" and alone:
        unet = load(path)
        model = Pipe(unet, None, None, _shape(unet, path, shape), path.resolve().name)
    elif kind == "saved":
        model, twin = _saved(path, parts, shape, given)
    else:
        model = _pipe(source, kind, text_encoder=text_encoder, **given)
    if scheduler and kind == "pipeline":
        model.scheduler = make_scheduler(scheduler, model.scheduler)
    elif scheduler and isinstance(model, Pipe):
        model = replace(model, scheduler=make_scheduler(scheduler, model.scheduler))
    return Opened(kind, str(source), model, twin)


def _check_overrides(source: str | Path, overrides: Sequence[str]) -> None:
    if overrides:
        raise ModelError(
            f"{source} has no configuration to change by {', '.join(overrides)}",
            where=str(source),
        )


def _pipe(
    source: str | Path,
    kind: str,
    config: Any = None,
    ema: bool = True,
    overrides: Sequence[str] = (),
    text_encoder: str | Path | None = None,
) -> Pipe:
    """The Pipe of an embedded model, a run or a checkpoint file."""
    path = Path(source)
    if kind == "embedded":
        _check_overrides(source, overrides)
        return load_embedded(str(source))
    if kind == "run":
        folder = RunFolder.around(path)
        if not folder.exists:
            raise StorageError(
                "neither a saved model, nor a run or a checkpoint of one",
                where=str(path),
                fix="a folder that tdq.save, tdquant train or tdquant quantize wrote",
            )
        pipe = folder.model(None if folder.path == path else path, ema, overrides)
    elif config is None:
        raise ModelError(
            "a checkpoint file without its configuration",
            where=str(source),
            fix="--config FILE.yaml, the one that it was trained with",
        )
    else:
        pipe = load_compvis(config, path, ema=ema, overrides=overrides, text_encoder=text_encoder)
    return replace(pipe, name=path.resolve().name)


def _saved(
    folder: Path, parts: str | Path | None, shape: tuple[int, ...] | None, given: dict[str, Any]
) -> tuple[Pipe, str | None]:
    """A saved denoiser with the parts that it samples with, and the source of its float twin."""
    model, name = load(folder), folder.resolve().name
    around = _run_of(folder) if parts is None else parts
    twin = _twin(folder) if around is None else None
    if around is None:
        _check_overrides(folder, given["overrides"])
    if around is None and twin is None:
        warnings.warn(
            f"{folder}: the model's noise schedule and prediction are not known; it is sampled by "
            "DDPM's linear schedule, as one that predicts noise (--pipe names its parts)",
            stacklevel=3,
        )
        schedule = require("diffusers", "diffusers").DDIMScheduler(clip_sample=False)
        return Pipe(model, None, schedule, _shape(model, folder, shape), name), None
    if around is None:
        pipe = load_embedded(str(twin))
    else:
        kind = kind_of(around, dict.fromkeys(("saved", "pipeline", "exported"), "--pipe: a model "
                                             "with noise schedule and first stage"))  # fmt: skip
        pipe = _pipe(around, kind, **given)
        if kind in ("embedded", "checkpoint"):
            twin = str(around)  # of a run, the model is quantized itself
    own = shape or sample_shape(model)
    if own is not None and tuple(own) != tuple(pipe.shape):
        raise ModelError(
            f"a model of samples {tuple(own)} in a pipe of {tuple(pipe.shape)}",
            where=str(folder),
            fix="--pipe with the model that it was made from",
        )
    return replace(pipe, unet=model, name=name), twin


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


def _shape(model: nn.Module, folder: Path, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that was given, else the model's own.

    Raises:
        ModelError: Neither is known.
    """
    found = shape or sample_shape(model)
    if found is None:
        raise ModelError(
            "the shape of a sample is not known",
            where=str(folder),
            why="the model's configuration does not have it",
            fix="--shape, such as 3,32,32, or --pipe with the model that it was made from",
        )
    return found
