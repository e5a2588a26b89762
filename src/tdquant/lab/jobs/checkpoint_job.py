"""From a latent-diffusion checkpoint file to a folder that samples: the stages of ``workflow``, on
a denoiser that has no diffusers pipeline around it.

The folder is that of a run without training: ``sample.py`` and ``tdquant evaluate`` take it, and
``frozen/`` in it is the quantized model as ``tdq.save`` writes it.
"""

from __future__ import annotations

import copy
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import trajectories
from tdquant.clock import is_quantized
from tdquant.diffusion import Condition, sample
from tdquant.errors import ModelError
from tdquant.files.writing import replacing_folder
from tdquant.freezing import freeze
from tdquant.lab.jobs.job import PICTURE, Job, Outcome
from tdquant.lab.jobs.pictures import compare, draw_comparison
from tdquant.lab.jobs.workflow import (
    CURVE,
    MARK,
    Laps,
    check_out,
    quantize_part,
    work_folder,
    write_mark,
)
from tdquant.lab.runs import RunFolder
from tdquant.model_summary import summary
from tdquant.models import Pipe, load_compvis
from tdquant.models.compvis.text import GUIDANCE
from tdquant.refine.correction import correct
from tdquant.state import note
from tdquant.storage import save
from tdquant.support.memory import resident_bytes

PART = "unet"


def run_checkpoint_job(job: Job) -> Outcome:
    """Quantizes a checkpoint file.

    Raises:
        ModelError: The checkpoint does not fit its configuration, is quantized already, or takes
            prompts that are not given.
        StorageError: The checkpoint cannot be read, or the output folder holds something else.
        TDQError: Whatever a stage complains of.
    """
    check_out(job)  # before hours of work, and not after
    _check_options(job)
    lap = Laps()
    pipe = _open(job)
    condition = _condition(pipe, job)
    count = job.prompts if isinstance(job.prompts, int) else len(job.prompts)
    teacher = copy.deepcopy(pipe.unet)
    before = resident_bytes(teacher)
    shared: dict[str, Any] = {
        "steps": job.steps, "batch": job.batch, "condition": condition, "device": job.device,
    }  # fmt: skip

    def calls_of(unet: nn.Module) -> Any:
        return trajectories(unet, pipe.scheduler, count, pipe.shape, seed=job.seed, **shared)

    def pictures(unet: nn.Module) -> Tensor:
        shown, seed = min(count, job.pictures), job.seed + 1
        samples = sample(
            unet, pipe.scheduler, shown, pipe.shape, seed=seed, progress=job.progress, **shared
        )
        with torch.no_grad():
            return pipe.decode(samples.to(job.device)).clamp(-1, 1).cpu()

    lap("load")
    work = work_folder(job)
    exact = pictures(teacher) if job.pictures else None
    lap("pictures")
    live = quantize_part(pipe.unet, PART, calls_of(teacher), job, work, lap)
    frozen = freeze(live)
    lap("freeze")
    if job.correct:
        frozen = correct(frozen, teacher, calls_of(frozen), progress=job.progress)
        lap("correct")
    drawn, errors = None, None
    if exact is not None:
        drawn = pictures(frozen)
        errors = compare(drawn, exact)
        note(frozen, "compare", pictures=len(exact), **errors)
        lap("pictures")
    with replacing_folder(job.out, MARK) as fresh:
        folder = RunFolder(fresh)
        folder.begin(pipe, dict(job.config or {}), _asked(job))
        save(frozen.cpu(), folder.frozen)
        if exact is not None and drawn is not None:
            draw_comparison(exact, drawn, fresh / PICTURE)
        for curve in work.glob(CURVE.format("*")):
            shutil.copy(curve, fresh)
        after = sum(f.stat().st_size for f in folder.frozen.glob("*.safetensors"))
        write_mark(fresh)
    shutil.rmtree(work, ignore_errors=True)
    lap("save")
    layers = {PART: str(summary(frozen))}
    return Outcome(job.out, layers, {PART: (before, after)}, errors, lap.seconds)


def _open(job: Job) -> Pipe:
    """The float model on its device.

    Raises:
        ModelError: It is quantized already.
    """
    pipe = load_compvis(job.config or {}, job.model, ema=job.ema, text_encoder=job.text_encoder)
    if is_quantized(pipe.unet):
        raise ModelError(
            "the checkpoint is of a quantized model",
            where=job.model,
            why="it has grids and scales of its own",
            fix="the float checkpoint; or sample.py, which freezes and samples this one",
        )
    pipe.unet.to(job.device)
    if pipe.vae is not None:
        pipe.vae.to(job.device)
    return pipe


def _condition(pipe: Pipe, job: Job) -> Condition | None:
    """Prompts as embeddings, or None for an unconditional model.

    Raises:
        ModelError: Prompts and model do not go together.
    """
    takes = pipe.unet.config["context_dim"] is not None  # type: ignore[index]
    prompts = None if isinstance(job.prompts, int) else [_text(p) for p in job.prompts]
    if takes != (prompts is not None) or (takes and pipe.text_encoder is None):
        raise ModelError(
            "the model takes prompts" if takes else "the model takes no prompts",
            where=job.model,
            fix="--prompts FILE and --text-encoder FOLDER" if takes else "--samples N",
        )
    if prompts is None:
        return None
    guidance = job.call.get("guidance_scale", GUIDANCE)
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


def _check_options(job: Job) -> None:
    """Refuses what a job on a checkpoint file would ignore.

    Raises:
        ModelError: There is such a thing; all are listed.
    """
    known = set() if isinstance(job.prompts, int) else {"guidance_scale"}
    odd = [f"{key}=" for key in job.call if key not in known]
    odd += [f"--part {name}" for name in job.parts if name != PART]
    odd += ["--dtype"] if job.dtype is not None else []
    if odd:
        raise ModelError(
            f"{', '.join(odd)} for a checkpoint file",
            where=job.model,
            why="that is for pipelines",
            fix="leave it out; guidance_scale= goes with --prompts",
        )


def _asked(job: Job) -> dict[str, Any]:
    """What the folder says of its making."""
    return {"made by": "tdquant quantize", "checkpoint": str(job.model), "options": {}}
