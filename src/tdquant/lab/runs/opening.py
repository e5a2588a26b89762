"""Opening whatever samples: a checkpoint file, a run, an embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tdquant.errors import ModelError, StorageError
from tdquant.lab.runs.folder import RunFolder
from tdquant.models import EMBEDDED, Pipe, load_compvis, load_embedded
from tdquant.quantization import quantize
from tdquant.recipe import Recipe
from tdquant.storage import load
from tdquant.training.checkpoints import Checkpoint, read_checkpoint
from tdquant.training.structure import joined, restore


def open_pipe(
    source: str | Path,
    config: str | Path | Sequence[str | Path] | None = None,
    *,
    ema: bool = True,
    overrides: Sequence[str] = (),
    text_encoder: str | Path | None = None,
) -> Pipe:
    """A model that samples, from any of

    - a latent-diffusion checkpoint file, which needs ``config``;
    - the folder of a run, or one of its checkpoints;
    - the name of an embedded model.

    Arguments:
        source: Path or name.
        config: YAML configuration; a run has its own.
        ema: Take averaged parameters.
        overrides: ``key.path=value`` changes to the configuration.
        text_encoder: Folder of the text encoder of a checkpoint file of a text-to-image model.

    Raises:
        StorageError: There is no such thing, or it is damaged.
        ModelError: The configuration is missing, or does not fit.
    """
    path = Path(source)
    if text_encoder is not None and not path.is_file():
        raise ModelError(
            "a text encoder for what is no checkpoint file",
            where=str(source),
            fix="leave it out: runs and embedded models are unconditional",
        )
    if path.is_dir():
        return _open_run(path, ema, overrides)
    if str(source) in EMBEDDED and not path.exists():
        if overrides:
            raise ModelError(
                f"{source} has no configuration to change by {', '.join(overrides)}",
                where=str(source),
            )
        return load_embedded(str(source))
    if not path.exists():
        raise StorageError(
            "no such checkpoint",
            where=str(source),
            fix=f"a file, the folder of a run, or one of {', '.join(EMBEDDED)}",
        )
    if config is None:
        raise ModelError(
            "a checkpoint file without its configuration",
            where=str(source),
            fix="--config FILE.yaml, the one that it was trained with",
        )
    return load_compvis(config, path, ema=ema, overrides=overrides, text_encoder=text_encoder)


def _open_run(path: Path, ema: bool, overrides: Sequence[str]) -> Pipe:
    chosen = path if (path / "state.json").exists() else None
    folder = RunFolder(path.parent.parent if chosen else path)
    if not folder.exists:
        raise StorageError(
            "neither a run nor a checkpoint of one",
            where=str(path),
            fix="a folder that tdquant train wrote",
        )
    if chosen is None and ema and (folder.frozen / "tdquant.json").exists():
        pipe = _first_parts(folder, None, overrides)
        return replace(pipe, unet=load(folder.frozen))
    found = read_checkpoint(chosen) if chosen else folder.checkpoints.latest()
    if found is None:
        raise StorageError(
            "the run has no whole checkpoint yet", where=str(path), fix="let it train on"
        )
    pipe = reopen(folder, found, overrides)
    tensors = found.tensors("model") | (found.tensors("average") if ema else {})
    pipe.unet.load_state_dict(tensors)
    return pipe


def reopen(folder: RunFolder, found: Checkpoint, overrides: Sequence[str] = ()) -> Pipe:
    """The model of a run as one of its checkpoints describes it, with the weights before training.

    Its scales and averages are loaded by whoever goes on.

    Raises:
        StorageError: The run began with a quantized checkpoint file that is not there any more.
    """
    structure = found.state["structure"]
    if structure is not None and structure["recipe"] is None:
        source = folder.asked()["checkpoint"]
        if source is None or not Path(source).is_file():
            raise StorageError(
                "the quantized checkpoint that the run began with is not there",
                where=str(source),
                why="it describes the layers, which the run's own checkpoints do not",
                fix="put it back",
            )
        return _first_parts(folder, source, overrides)
    pipe = _first_parts(folder, None, overrides)
    known = pipe.unet.state_dict()
    tensors = joined(found.tensors("model"), structure)
    pipe.unet.load_state_dict({k: v for k, v in tensors.items() if k in known})
    if structure is not None:
        quantize(pipe.unet, Recipe.from_dict(structure["recipe"]))
        restore(pipe.unet, structure, str(found.path))
    return pipe


def _first_parts(folder: RunFolder, source: str | None, overrides: Sequence[str]) -> Pipe:
    """Configuration and first stage of a run, with a UNet that is still to be filled."""
    pipe = load_compvis(folder.config, source, overrides=overrides, quiet=True)
    folder.fill_first_stage(pipe.vae)
    return replace(pipe, scale_factor=folder.scale_factor(), name=folder.path.name)
