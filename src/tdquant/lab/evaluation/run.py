"""``evaluate``: samples a model, judges the images, and leaves a folder that says everything.

    RUN/images/000000.png ...        the images, and samples.json, what they depend on
    RUN/features/                    their features, in shards
    RUN/layers.json                  of a quantized model: what rounding does to each layer
    RUN/grid.png                     the first images
    RUN/record.json                  the record; written last
    RUN/progress.json                while there is no record: how far it is

What is there and whole is not made again, so a run that was stopped goes on, and several processes
share one by its folder alone. Images of other settings are never taken: that is an error.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdquant.clock import is_quantized
from tdquant.errors import ModelError
from tdquant.lab.evaluation.folder import awaited, check_out, close, finished, lacking, under_way
from tdquant.lab.evaluation.generators import generator_of
from tdquant.lab.evaluation.judges import make_judges
from tdquant.lab.evaluation.layers import layer_report, write_layers
from tdquant.lab.evaluation.pairing import PairedMetric, paired_metrics, pictures_of, sqnr
from tdquant.lab.evaluation.picture_sets import HELDOUT
from tdquant.lab.evaluation.pipes import PipeGenerator
from tdquant.lab.evaluation.progress import Progress, now, wait_for
from tdquant.lab.evaluation.reading import check_pictures, preparation
from tdquant.lab.evaluation.record import Record
from tdquant.lab.evaluation.references import ReferenceSet
from tdquant.lab.evaluation.sampling import Generator, Sampling
from tdquant.lab.evaluation.subject import default_device, digest_of_json, megabytes
from tdquant.lab.metrics import FeatureNetwork, Lpips
from tdquant.lab.runs.pictures import claim_folder, picture_path
from tdquant.support.machine import machine, version

LAYER_SAMPLES, LAYER_STEPS = 4, 25
BATCH = 64


def evaluate(
    pipe: Any,
    out: str | Path,
    *,
    images: int = 5000,
    steps: int = 50,
    seed: int = 0,
    batch: int | None = None,
    eta: float = 0.0,
    reference: str | Path | None = HELDOUT,
    against: Any = None,
    paired: int = 256,
    metrics: Sequence[str] | None = None,
    network: str | FeatureNetwork = "efficientnet-lite0",
    weights: str | Path | None = None,
    backend: str = "auto",
    resamples: int = 100,
    resize: int | None = None,
    prompts: Sequence[str] | None = None,
    clip: str | Path | None = None,
    lpips: str | Path | bool = False,
    call: dict[str, Any] | None = None,
    source: str = "",
    rank: int = 0,
    world: int = 1,
    device: str | None = None,
    command: str = "",
    progress: bool = True,
) -> Record:
    """Samples a model, judges its images, and writes a record of all that.

    Arguments:
        pipe: A pipe of ``tdquant.models``, its denoiser float, quantized or frozen; or a diffusers
            pipeline of images.
        out: Folder of the run.
        images: Number of images.
        steps: Sampler steps.
        seed: Seed of all noise.
        batch: Images at a time; None takes as many as the folder's images were made with, and 64
            in a new one.
        eta: Share of DDIM's noise.
        reference: What to compare with: see ``tdquant.lab.evaluation.references``; None
            leaves out the metrics that need one.
        against: A pipe or pipeline whose images from the same noise these are compared with,
            mostly the float model; None compares with nothing.
        paired: Number of images that are compared so.
        metrics: Names of ``tdquant.lab.metrics.SET_METRICS``; None takes the usual ones.
        network: Feature network, or its name.
        weights: File of its weights.
        backend: What runs a frozen model: a backend, ``"auto"``, ``"cpu"``, or ``"simulated"``.
        resamples: What each interval is made from: subsets of the images for metrics of sets,
            draws of the bootstrap for means over images or pairs. Fewer than 2 leave intervals
            out.
        resize: Side to which the centred square of every image is resized before the network sees
            it, and of reference images in a folder too. Pairs are compared as they are.
        prompts: One image each, over and over, for pipelines that take them.
        clip: Folder of a CLIP model, to score images with their prompts.
        lpips: Whether pairs are compared by LPIPS as well, or the file of its AlexNet's weights.
        call: Further arguments of a diffusers pipeline's call.
        source: Where the model comes from, for the record.
        rank: This process.
        world: Number of processes that share the work, on one machine or on several that share
            the folder.
        device: Where to run; the process's GPU if there is one, else the CPU.
        command: The command that asked for it, for the record.
        progress: Draw bars.

    Returns:
        The record, in every process.

    Raises:
        StorageError: The folder holds something else, or images of other settings.
        DataError: Metrics, reference set and images do not go together.
        ModelError: Something about the model or the sampler does not fit.
    """
    out, began = Path(out), time.perf_counter()
    check_out(out)
    batch = _batch_of(out) if batch is None else batch
    count = min(paired, images) if against is not None else 0
    if images < 1 or batch < 1 or paired < 1:
        raise ModelError(f"{images=}, {batch=}, {paired=}", where="evaluate", fix="at least 1")
    generator = generator_of(pipe, prompts, call)
    other = None if against is None else generator_of(against, prompts, call)
    place = device or default_device()
    texts = None if prompts is None else [prompts[i % len(prompts)] for i in range(images)]
    judges = make_judges(
        network, weights, place, metrics, reference, images, resamples, resize, clip, texts
    )
    more = {"lpips": Lpips(None if lpips is True else lpips)} if lpips and count else {}
    sampling = Sampling(steps, seed, batch, eta, backend, place)
    settings = generator.settings(sampling)
    if (out / "images" / "samples.json").exists():  # refused before a record makes room
        claim_folder(out / "images", {"seed": seed, "steps": steps, "eta": eta, **settings})
    asked = digest_of_json(
        {"sampling": settings, "images": images, "steps": steps, "seed": seed, "eta": eta}
        | judges.asked()
        | {"against": other and other.digest, "paired": count}
        | {"more": sorted(f"{name} {metric.digest}" for name, metric in more.items())}
    )
    state = Progress(out, writes=rank == 0)
    resumed = under_way(out)
    files = [picture_path(out / "images", i) for i in range(images)]
    size, opened = generator.size(), None
    if size is not None and resize is not None:
        size = resize, resize
    if rank == 0:
        # What is wrong with the reference set is told before a record makes room.
        told = None if size is None else judges.find(size)

        def find(record: Record) -> ReferenceSet | None:
            return judges.find(_size_of(record)) if size is None else told

        found = finished(out, asked, find, state)
        if found is not None:
            return found
        opened = judges.open(told, state, progress)

    def first_image() -> None:
        """What does not go together is told as soon as there is an image to see it by."""
        nonlocal size, opened
        if rank == 0 and size is None and files[0].exists():
            size = check_pictures(files[:1], resize)
            opened = judges.open(judges.find(size), state, progress)

    _sample(generator, sampling, files, state, rank, world, progress, first_image)
    # Whatever runs the model that is judged, the other one runs as it would by itself.
    theirs, pictures = replace(sampling, backend="auto"), None
    if other is not None:
        pictures = pictures_of(other, theirs, out)
        other.write(
            pictures, count, theirs, rank=rank, world=world, progress=progress,
            seen=lambda written: state.at("pictures to compare with", min(written, count), count),
        )  # fmt: skip
    if rank == 0:
        wait_for(lambda: lacking(files), "images", out,
                 lambda left: state.at("sampling", images - left, images))  # fmt: skip
        first_image()
    measured = judges.judge(files, out, opened, state, rank, world, progress)
    if measured is None:
        return awaited(out, asked)
    compared, decibels = None, None
    if other is not None and pictures is not None:
        compared = _compare(out, other, pictures, count, resamples, more)
        if isinstance(generator, PipeGenerator) and isinstance(other, PipeGenerator):
            decibels = sqnr(generator.run(sampling)[0], other, steps, seed + 1, place)
    if is_quantized(generator.model):
        state.at("layers", 0, 1)
        calls = (other or generator).calls(LAYER_SAMPLES, min(LAYER_STEPS, steps), seed + 2)
        report = layer_report(generator.model, calls, other.model if other else None)
        write_layers(report, out / "layers.json")
    seconds, made = float(state.facts.get("seconds", 0.0)), int(state.facts.get("made", 0))
    assert size is not None
    record = Record(
        tdquant=version(),
        created=now(),
        model=generator.describe(source or generator.name),
        sampling={
            "images": images,
            "seed": seed,
            "batch": sampling.batch,
            "steps": steps,
            "eta": eta,
            "scheduler": settings["scheduler"],
            "backend": settings["backend"],
            "device": settings["device"],
            "shape": settings["shape"] or [3, *size],
            "size": list(size),
            "preprocessing": preparation(size, resize),
            "prompts": settings["prompts"],
            "call": settings.get("call") or None,
        },
        reference=None if opened is None else opened.to_dict(),
        network=judges.described(),
        metrics=measured,
        paired=compared,
        sqnr=decibels,
        cost={
            "seconds": round(time.perf_counter() - began, 3),
            "resumed": resumed,
            "sampling_seconds": round(seconds * images / made, 3) if made else None,
            "images_per_second": made / seconds if seconds else None,
            "milliseconds_a_call": generator.milliseconds(images, sampling),
            "megabytes": megabytes(generator.model),
        },
        machine=machine(place),
        command=command,
        asked=asked,
    )
    return close(record, out, files, state)


def _batch_of(out: Path) -> int:
    """The batch that the images of a run were made in; the usual one if there are none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((out / "images" / "samples.json").read_text())["batch"])
    return BATCH


def _size_of(record: Record) -> tuple[int, int] | None:
    """Size of a record's images as they were judged; early records do not tell."""
    found = record.sampling.get("size")
    return (int(found[0]), int(found[1])) if found else None


def _sample(
    generator: Generator, sampling: Sampling, files: list[Path], state: Progress,
    rank: int, world: int, progress: bool, first_image: Callable[[], None],
) -> None:  # fmt: skip
    """Makes this process's share of the images; ``first_image`` is called after every batch."""
    folder, began = files[0].parent, time.perf_counter()
    seconds, made = float(state.facts.get("seconds", 0.0)), int(state.facts.get("made", 0))
    missing = lacking(files)

    def seen(written: int) -> None:
        left = lacking(files)
        if written:  # by this process; meanwhile others made some too
            state.facts["seconds"] = round(seconds + time.perf_counter() - began, 3)
            state.facts["made"] = made + missing - left
        state.at("sampling", len(files) - left, len(files))
        first_image()

    seen(0)
    seen(generator.write(
        folder, len(files), sampling, rank=rank, world=world, progress=progress, seen=seen
    ))  # fmt: skip


def _compare(
    out: Path,
    other: Generator,
    pictures: Path,
    count: int,
    resamples: int,
    more: Mapping[str, PairedMetric],
) -> dict[str, Any]:
    """What a record says of the first images and those of another model."""
    files = [picture_path(pictures, i) for i in range(count)]
    wait_for(lambda: lacking(files), "pictures to compare with", pictures)
    return {
        "against": other.describe(other.name),
        "images": count,
        "metrics": paired_metrics(out / "images", pictures, count, resamples=resamples, more=more),
    }
