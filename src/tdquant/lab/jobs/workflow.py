"""From a pipeline in a folder to a quantized one in another: everything that a user does by hand,
in one job that can be stopped and started again.

    record calls -> (balance) -> (search bits) -> quantize -> calibrate -> (reconstruct) -> freeze
    -> (correct) -> compare pictures -> save

Recorded calls and unfinished reconstruction stay in a folder beside the output until the job ends.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tdquant.calibration import calibrate, observe
from tdquant.calls import Recording, Shards, denoisers, read_shards, record_pipeline
from tdquant.errors import MissingDependencyError, ModelError, StorageError
from tdquant.files.writing import check_folder, replacing_folder
from tdquant.freezing import freeze
from tdquant.lab.jobs.job import PICTURE, Job, Outcome
from tdquant.lab.jobs.pictures import compare, draw_comparison, render
from tdquant.model_summary import summary
from tdquant.quantization import quantize
from tdquant.refine.balancing import balance
from tdquant.refine.correction import correct
from tdquant.refine.reconstruction import reconstruct
from tdquant.refine.search import search, sensitivity
from tdquant.state import note, state_of
from tdquant.support.announce import announce
from tdquant.support.memory import resident_bytes

MARK = "tdquant-job.json"
"""In a folder that a job wrote: what else it wrote there. Such a folder may be replaced."""

CURVE = "search-{}.png"


def run_job(job: Job) -> Outcome:
    """Quantizes a pipeline from folder to folder.

    Raises:
        ModelError: The pipeline cannot be opened, or has no such denoiser.
        StorageError: The output folder holds something else.
        TDQError: Whatever a stage complains of. What was recorded stays for the next try.
    """
    check_out(job)  # before hours of work, and not after
    lap = Laps()
    pipe = open_pipeline(job)
    parts = _parts(pipe, job)
    lap("load")
    work = work_folder(job)
    calls = _calls(_recording(pipe, job), work / "calls")
    lap("record")
    shown = _shown(job)
    exact = render(pipe, shown, **_sampling(job)) if shown else None
    lap("pictures")
    layers, sizes = {}, {}
    teachers = {name: copy.deepcopy(pipe.components[name]) for name in parts if job.correct}
    for name in parts:
        before = resident_bytes(pipe.components[name])
        live = quantize_part(pipe.components[name], name, calls[name], job, work, lap)
        frozen = freeze(live)
        layers[name] = str(summary(frozen))
        setattr(pipe, name, frozen)
        sizes[name] = (before, 0)
        lap("freeze")
    for name, teacher in teachers.items():
        # The calls that the quantized pipeline makes, which are not those that were recorded.
        own = _recording(pipe, job)[name]
        setattr(pipe, name, correct(getattr(pipe, name), teacher, own, progress=job.progress))
        lap("correct")
    del teachers
    errors, pictures = None, None
    if exact is not None:
        pictures = render(pipe, shown, **_sampling(job))
        assert pictures is not None  # the float pipeline gave some
        errors = compare(pictures, exact)
        for name in parts:
            note(pipe.components[name], "compare", pictures=len(exact), **errors)
            announce(pipe.components[name])  # its card and configuration know of it
        lap("pictures")
    with replacing_folder(job.out, MARK) as fresh:
        pipe.save_pretrained(fresh)
        if exact is not None and pictures is not None:
            draw_comparison(exact, pictures, fresh / PICTURE)
        for curve in work.glob(CURVE.format("*")):
            shutil.copy(curve, fresh)
        for name in parts:
            after = sum(f.stat().st_size for f in (fresh / name).glob("*.safetensors"))
            sizes[name] = (sizes[name][0], after)
        write_mark(fresh)
    shutil.rmtree(work, ignore_errors=True)
    lap("save")
    return Outcome(job.out, layers, sizes, errors, lap.seconds)


def work_folder(job: Job) -> Path:
    """The folder beside the output for what is not finished, which is removed in the end.

    Raises:
        StorageError: There is one that no job made.
    """
    work = job.out.with_name(f"{job.out.name}.work")
    if work.exists() and not (work / MARK).exists() and (work.is_file() or any(work.iterdir())):
        raise StorageError(
            "there is something else where unfinished work would lie",
            where=str(work),
            why=f"no job made it: it has no {MARK}",
            fix="move it away, or another --out",
        )
    work.mkdir(parents=True, exist_ok=True)
    write_mark(work)
    return work


class Laps:
    """Wall time by stage: ``lap(stage)`` ends a stage.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


def write_mark(folder: Path) -> None:
    """Notes what a job wrote into its folder."""
    written = {"format": "tdquant-job", "version": 1, "files": _files(folder)}
    (folder / MARK).write_text(json.dumps(written, indent=1) + "\n")


def _files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def check_out(job: Job) -> None:
    """Raises StorageError unless the output is new, or nothing but what an earlier job wrote."""
    out = check_folder(job.out, MARK)
    if Path(job.model).exists() and Path(job.model).resolve() == out:
        raise StorageError(
            "the output is the float pipeline itself", where=str(out), fix="another --out"
        )
    if not (out / MARK).exists():
        return
    try:
        known = {MARK, *json.loads((out / MARK).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{MARK} is damaged", where=str(out), why=str(error)) from error
    strange = sorted(set(_files(out)) - known)
    if strange:
        raise StorageError(
            f"{len(strange)} files are not of the job that wrote the folder",
            where=str(out),
            why=f"such as {', '.join(strange[:3])}",
            fix="move them away, or another --out",
        )


def quantize_part(
    model: nn.Module, name: str, calls: Any, job: Job, work: Path, lap: Callable[[str], None]
) -> nn.Module:
    """Quantizes and calibrates one denoiser in place, with whatever else the job asks for.

    Arguments:
        model: The denoiser.
        name: What it is called.
        calls: Calls of it, which can be iterated over several times.
        job: The job.
        work: Folder for what is not finished.
        lap: Called with the name of each stage that ended.
    """
    recipe = job.recipe
    if job.balance is not None:
        balance(model, calls, alpha=job.balance, progress=job.progress)
        lap("balance")
    seen = None
    if job.target_bits is not None or job.max_error is not None:
        # The measured model is quantized, and the one to be kept must not be yet.
        trial = quantize(copy.deepcopy(model), recipe)
        seen = observe(trial, calls, seed=job.seed, progress=job.progress)
        measured = sensitivity(trial, seen, seed=job.seed, progress=job.progress)
        del trial
        # Few times near the image have most of the error; others decide what the picture is.
        found = search(
            measured if job.target_bits is None else measured.balanced(),
            target_bits=job.target_bits,
            max_error=job.max_error,
            base=recipe,
        )
        print(found)
        recipe = found.recipe
        try:
            found.plot(work / CURVE.format(name))
        except MissingDependencyError as error:
            print(f"no picture of the search: {error}")
        lap("search")
    quantize(model, recipe)
    calibrate(
        model,
        calls if seen is None else seen,
        seed=job.seed,
        progress=job.progress,
    )
    print(state_of(model).calibration)
    lap("calibrate")
    if job.reconstruct:
        reconstruct(
            model,
            calls,
            method=job.reconstruct,
            iterations=job.iterations,
            checkpoint=work / f"reconstruct-{name}",
            seed=job.seed,
            progress=job.progress,
        )
        lap("reconstruct")
    return model


def open_pipeline(job: Job) -> Any:
    """The float pipeline.

    Raises:
        ModelError: There is none, or it is quantized already.
    """
    from diffusers import DiffusionPipeline

    options = {} if job.dtype is None else {"dtype": job.dtype}
    try:
        pipe = DiffusionPipeline.from_pretrained(job.model, **options)
    except (OSError, ValueError) as error:
        raise ModelError(
            "no pipeline can be opened",
            where=job.model,
            why=str(error).strip().splitlines()[0],
            fix="a folder with model_index.json, or a name on the hub",
        ) from error
    done = [n for n, m in denoisers(pipe).items() if getattr(m, "is_quantized", False)]
    if done:
        raise ModelError(
            f"{', '.join(done)} of it is quantized already",
            where=job.model,
            fix="start from the float pipeline",
        )
    return pipe.to(job.device)


def _parts(pipe: Any, job: Job) -> list[str]:
    found = denoisers(pipe)
    odd = [name for name in job.parts if name not in found]
    if odd:
        raise ModelError(
            f"no denoiser {', '.join(odd)}", where=job.model, fix=f"of {', '.join(found)}"
        )
    return list(job.parts or found)


def _sampling(job: Job) -> dict[str, Any]:
    return {"steps": job.steps, "batch": job.batch, "seed": job.seed + 1, **job.call}


def _shown(job: Job) -> Any:
    """What to draw for the comparison, of noise that calibration has not seen."""
    if isinstance(job.prompts, int):
        return min(job.prompts, job.pictures)
    return list(job.prompts)[: job.pictures]


def _recording(pipe: Any, job: Job) -> Recording:
    """What the pipeline, as it is now, will be seen to do."""
    recording = record_pipeline(
        pipe,
        job.prompts,
        steps=job.steps,
        batch=job.batch,
        seed=job.seed,
        progress=job.progress,
        **job.call,
    )
    digest = hashlib.sha256(repr(recording.runs).encode()).hexdigest()[:16]
    origin = {**recording.made_by, "model": job.model, "digest of arguments": digest}
    return replace(recording, made_by=origin)


def _calls(recording: Recording, folder: Path) -> Shards:
    """The recorded calls, taken from an earlier try of the same job if it got so far."""
    with contextlib.suppress(StorageError):
        earlier = read_shards(folder)
        if dict(earlier.made_by) == dict(recording.made_by):
            return earlier
    return recording.save(folder)
