"""What a job quantizes: the denoisers of a diffusers pipeline, or the one of a latent-diffusion
checkpoint, which has no pipeline around it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import Recording, denoisers, read_shards, record_denoiser, record_pipeline
from tdquant.clock import is_quantized
from tdquant.diffusion import Condition, sample
from tdquant.errors import ModelError, StorageError
from tdquant.files.config import read_config
from tdquant.files.digests import add_value
from tdquant.files.looking import is_folder
from tdquant.lab.jobs.options import QuantizeOptions
from tdquant.lab.jobs.pictures import render
from tdquant.lab.opening import kind_of, open_model
from tdquant.lab.run_folder import RunFolder
from tdquant.models import Pipe
from tdquant.models.compvis.text import GUIDANCE
from tdquant.storage import save

PART = "unet"
_REFUSED = {
    "embedded": "tdquant bench or tdq.quantize: it has no configuration to save beside it",
    "saved": "the float model that it was made from",
    "exported": "the float model that it was made from",
}


def open_target(options: QuantizeOptions) -> PipelineTarget | CheckpointTarget:
    """The float model of a job, on its device.

    Raises:
        ModelError: It cannot be opened, is quantized already, lacks a denoiser that was asked for,
            or does not go with the options.
        StorageError: There is no such model, or it is damaged.
    """
    if kind_of(options.model, _REFUSED) == "pipeline":
        return PipelineTarget(options)
    return CheckpointTarget(options)


class PipelineTarget:
    """A diffusers pipeline.

    Attributes:
        denoisers: Name -> denoiser, float or quantized by now.
    """

    def __init__(self, options: QuantizeOptions) -> None:
        self.options = options
        if options.config or options.overrides:
            raise ModelError(
                f"a configuration ({', '.join(map(str, options.config or options.overrides))}) "
                "for a pipeline",
                where=options.model,
                fix="leave it out; it belongs to a checkpoint file",
            )
        pipe = open_model(
            options.model, dtype=options.dtype, text_encoder=options.text_encoder
        ).model
        found = denoisers(pipe)
        done = [n for n, m in found.items() if getattr(m, "is_quantized", False)]
        if done:
            raise ModelError(
                f"{', '.join(done)} of it is quantized already",
                where=options.model,
                fix="start from the float pipeline",
            )
        unknown = [name for name in options.parts if name not in found]
        if unknown:
            raise ModelError(
                f"no denoiser {', '.join(unknown)}",
                where=options.model,
                fix=f"of {', '.join(found)}",
            )
        self.pipe = pipe.to(options.device)
        self.denoisers = {name: found[name] for name in options.parts or found}

    def record(self, folder: Path) -> Any:
        """Denoiser -> its calls while the float model samples, kept in a folder if need be."""
        recording = self._recording()
        with contextlib.suppress(StorageError):  # an earlier try of the same job got so far
            earlier = read_shards(folder)
            if dict(earlier.made_by) == dict(recording.made_by):
                return earlier
        return recording.save(folder)

    def replace(self, name: str, model: nn.Module) -> None:
        """Puts a quantized denoiser into its place."""
        self.denoisers[name] = model
        setattr(self.pipe, name, model)

    def own_calls(self, name: str) -> Any:
        """Calls of a denoiser while the model, as it is now, samples."""
        return self._recording()[name]

    def draw(self) -> Tensor | None:
        """Pictures in [-1, 1], ``(N, 3, H, W)``, from noise that calibration has not seen; None
        if the model gives none.
        """
        given, shown = self.options.prompts, self.options.pictures
        prompts = min(given, shown) if isinstance(given, int) else list(given)[:shown]
        return render(self.pipe, prompts, **self._sampling(self.options.seed + 1))

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes the quantized model; returns the folder of each denoiser."""
        self.pipe.save_pretrained(folder)
        return {name: folder / name for name in self.denoisers}

    def _sampling(self, seed: int) -> dict[str, Any]:
        options = self.options
        return {"steps": options.steps, "batch": options.batch, "seed": seed, **options.call}

    def _recording(self) -> Recording:
        """A recording of the pipeline as it is now."""
        options = self.options
        recording = record_pipeline(
            self.pipe, options.prompts, progress=options.progress, **self._sampling(options.seed)
        )
        digest = hashlib.sha256()
        add_value(digest, recording.runs)
        origin = {"model": options.model, "digest of arguments": digest.hexdigest()[:16]}
        return replace(recording, made_by={**recording.made_by, **origin})


class CheckpointTarget:
    """A latent-diffusion checkpoint file, or a float training run, used like PipelineTarget.

    The folder written is that of a run without training: ``sample.py`` and ``tdquant evaluate``
    take it, and ``frozen/`` in it is the quantized model as ``tdq.save`` writes it.
    """

    def __init__(self, options: QuantizeOptions) -> None:
        _check(options)
        self.options = options
        self.pipe: Pipe = open_model(
            options.model,
            config=options.config,
            overrides=options.overrides,
            ema=options.ema,
            text_encoder=options.text_encoder,
        ).model
        source = Path(options.model)
        files = [RunFolder.around(source).config] if is_folder(source) else options.config
        self.config = read_config(files or (), options.overrides)
        if is_quantized(self.pipe.unet):
            raise ModelError(
                "the checkpoint is of a quantized model",
                where=options.model,
                why="it has grids and scales of its own",
                fix="the float checkpoint; or sample.py, which freezes and samples this one",
            )
        self.pipe.unet.to(options.device)
        if self.pipe.vae is not None:
            self.pipe.vae.to(options.device)
        self.denoisers = {PART: self.pipe.unet}
        prompts = options.prompts
        self.count = prompts if isinstance(prompts, int) else len(prompts)
        self.condition = _condition(self.pipe, options)

    def record(self, folder: Path) -> Any:
        # Sampled anew in every pass, by a copy: the model itself is quantized in place.
        return {PART: self._calls(copy.deepcopy(self.pipe.unet))}

    def replace(self, name: str, model: nn.Module) -> None:
        self.denoisers[name] = model

    def own_calls(self, name: str) -> Any:
        return self._calls(self.denoisers[name])

    def draw(self) -> Tensor | None:
        shown, options = min(self.count, self.options.pictures), self.options
        unet = self.denoisers[PART]
        samples = self._over(sample, unet, shown, seed=options.seed + 1, progress=options.progress)
        with torch.no_grad():
            return self.pipe.decode(samples.to(options.device)).clamp(-1, 1).cpu()

    def save(self, folder: Path) -> dict[str, Path]:
        run, asked = RunFolder(folder), {"checkpoint": self.options.model, "options": {}}
        run.begin(self.pipe, dict(self.config), {"made by": "tdquant quantize", **asked})
        save(self.denoisers[PART].cpu(), run.frozen)
        return {PART: run.frozen}

    def _calls(self, unet: nn.Module) -> Any:
        return self._over(record_denoiser, unet, self.count, seed=self.options.seed)

    def _over(self, what: Callable[..., Any], unet: nn.Module, count: int, **more: Any) -> Any:
        """``sample`` or ``record_denoiser`` of a denoiser with the options of the job."""
        options = self.options
        return what(
            unet,
            self.pipe.scheduler,
            count,
            self.pipe.shape,
            steps=options.steps,
            batch=options.batch,
            condition=self.condition,
            device=options.device,
            **more,
        )


def _check(options: QuantizeOptions) -> None:
    """Refuses what a job on a checkpoint file would ignore.

    Raises:
        ModelError: There are such options; all are listed.
    """
    known = set() if isinstance(options.prompts, int) else {"guidance_scale"}
    useless = [f"{key}=" for key in options.call if key not in known]
    useless += [f"--part {name}" for name in options.parts if name != PART]
    useless += ["--dtype"] if options.dtype is not None else []
    if useless:
        raise ModelError(
            f"{', '.join(useless)} for a checkpoint file",
            where=options.model,
            why="that is for pipelines",
            fix="leave it out; guidance_scale= goes with --prompts",
        )


def _condition(pipe: Pipe, options: QuantizeOptions) -> Condition | None:
    """Prompts as embeddings, or None for an unconditional model.

    Raises:
        ModelError: Prompts and model do not go together.
    """
    takes = pipe.unet.config["context_dim"] is not None  # type: ignore[index]
    if isinstance(options.prompts, int):
        prompts = None
    else:
        prompts = [_text(prompt) for prompt in options.prompts]
    if takes != (prompts is not None) or (takes and pipe.text_encoder is None):
        raise ModelError(
            "the model takes prompts" if takes else "the model takes no prompts",
            where=options.model,
            fix="--prompts FILE and --text-encoder FOLDER" if takes else "--samples N",
        )
    if prompts is None:
        return None
    guidance = options.call.get("guidance_scale", GUIDANCE)
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)):
        raise ModelError(f"guidance_scale={guidance!r}", fix="a number")
    return pipe.text_encoder.condition(prompts, float(guidance))


def _text(prompt: Any) -> str:
    """The prompt of a line, text or arguments of a pipeline.

    Raises:
        ModelError: It has arguments that only a pipeline takes.
    """
    if isinstance(prompt, str):
        return prompt
    if set(prompt) != {"prompt"} or not isinstance(prompt["prompt"], str):
        raise ModelError(
            f"arguments {', '.join(map(str, prompt))} for a checkpoint",
            fix="lines of text, or of objects with a prompt alone",
        )
    return prompt["prompt"]
