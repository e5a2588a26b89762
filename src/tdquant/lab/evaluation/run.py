"""``evaluate``: samples a model, judges the images, and leaves a folder that documents the run.

    RUN/images/000000.png ...        the images, and samples.json, what they depend on
    RUN/features/                    their features, in shards
    RUN/layers.json                  of a quantized model: the rounding error of each layer
    RUN/grid.png                     the first images
    RUN/record.json                  the record; written last
    RUN/progress.json                while there is no record: how far it is

What is there and whole is not made again, so that an interrupted run continues, and several
processes share one by its folder alone. Images of other settings are refused.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

from torch import nn

from tdquant.clock import is_quantized
from tdquant.errors import ModelError, StorageError
from tdquant.files.documents import read_json, write_json
from tdquant.files.looking import exists
from tdquant.lab.evaluation.config import EvaluationConfig
from tdquant.lab.evaluation.folder import (
    check_out,
    close,
    count_missing,
    finished,
    wait_for_record,
)
from tdquant.lab.evaluation.generator import Generator, Sampling
from tdquant.lab.evaluation.image_files import check_pictures, preparation
from tdquant.lab.evaluation.judges import Judges
from tdquant.lab.evaluation.layers import layer_report
from tdquant.lab.evaluation.pairing import Pair, sqnr
from tdquant.lab.evaluation.picture_sets import HELDOUT
from tdquant.lab.evaluation.pipe_generator import PipeGenerator
from tdquant.lab.evaluation.pipeline_generator import PipelineGenerator
from tdquant.lab.evaluation.progress import Progress, wait_for
from tdquant.lab.evaluation.record import Record, SamplingCost
from tdquant.lab.evaluation.references import Reference
from tdquant.lab.evaluation.subject import digest_of_json, megabytes
from tdquant.lab.metrics import FeatureNetwork, Lpips
from tdquant.lab.runs.pictures import claim_folder, picture_path
from tdquant.models import Pipe
from tdquant.support.restoring import keeping_modes

P = ParamSpec("P")
LAYERS = "layers.json"
LAYER_SAMPLES, LAYER_STEPS = 4, 25
BATCH = 64


def _keeps_modes(verb: Callable[P, Record]) -> Callable[P, Record]:
    """Decorates a function of pipes and pipelines, positional or ``against=``, that leaves every
    module of theirs in its own mode, training or evaluation.
    """

    @functools.wraps(verb)
    def kept(*args: P.args, **kwargs: P.kwargs) -> Record:
        with contextlib.ExitStack() as stack:
            for pipe in (*args, *kwargs.values()):
                found = vars(pipe) if isinstance(pipe, Pipe) else getattr(pipe, "components", {})
                for module in found.values():
                    if isinstance(module, nn.Module):
                        stack.enter_context(keeping_modes(module))
            return verb(*args, **kwargs)

    return kept


@_keeps_modes
def evaluate(
    pipe: Any,
    out: str | Path,
    *,
    images: int = 5000,
    steps: int = 50,
    seed: int = 0,
    reference: str | Path | None = HELDOUT,
    against: Any = None,
    metrics: Sequence[str] | None = None,
    network: str | FeatureNetwork = "efficientnet-lite0",
    config: EvaluationConfig | None = None,
    **options: Any,
) -> Record:
    """Samples a model, judges its images, and writes a record of everything.

    Arguments:
        pipe: A pipe of ``tdquant.models``, its denoiser float, quantized or frozen; or a diffusers
            pipeline of images.
        out: Folder of the run.
        images: Number of images.
        steps: Sampler steps.
        seed: Seed of all noise.
        reference: The reference set: see ``tdquant.lab.evaluation.references``; None leaves out
            the metrics that need one.
        against: A pipe or pipeline, usually the float model, whose images from the same noise
            these are compared with; None compares with nothing.
        metrics: Names of ``tdquant.lab.metrics.SET_METRICS``; None takes the default ones.
        network: Feature network, or its name.
        config: Further options.
        options: Fields of ``EvaluationConfig``, which replace those of ``config``.

    Returns:
        The record, in every process.

    Raises:
        StorageError: The folder holds something else, or images of other settings.
        DataError: Metrics, reference set and images do not fit together.
        ModelError: The model or the sampler does not fit.
        TypeError: There is no such option.
    """
    config = replace(config or EvaluationConfig(), **options)
    out, rank = Path(out), config.rank
    check_out(out)
    batch = _batch_of(out) if config.batch is None else config.batch
    count = min(config.paired, images) if against is not None else 0
    if images < 1 or batch < 1 or config.paired < 1:
        what = f"images={images}, batch={batch}, paired={config.paired}"
        raise ModelError(what, where="evaluate", fix="at least 1")
    judges = Judges(out, network, metrics, reference, images, config)
    generator, state = _generator(pipe, config), judges.state
    other = None if against is None else _generator(against, config)
    more = {}
    if config.lpips and count:
        more["lpips"] = Lpips(None if config.lpips is True else config.lpips)
    sampling = Sampling(steps, seed, batch, config.eta, config.backend, config.place)
    settings = generator.settings(sampling)
    if exists(out / "images" / "samples.json"):  # refused before a record is moved
        claim_folder(out / "images", generator.made_with(sampling))
    asked = digest_of_json(
        {"sampling": settings, "images": images, "steps": steps, "seed": seed, "eta": config.eta}
        | judges.asked()
        | {"against": other and other.digest, "paired": count}
        | {"more": sorted(f"{name} {metric.digest}" for name, metric in more.items())}
    )
    files = [picture_path(out / "images", i) for i in range(images)]
    size = generator.size()
    if size is not None and config.resize is not None:
        size = config.resize, config.resize
    if rank == 0:
        # Mistakes of the reference set are raised before a record is moved.
        known = None if size is None else judges.find_reference(size)

        def find(record: Record) -> Reference | None:
            return judges.find_reference(record.size) if size is None else known

        found = finished(out, asked, find, state)
        if found is not None:
            return found
        judges.open_reference(known)

    def check_first_image() -> None:
        """Opens the reference set once the first image shows the size that it must have."""
        nonlocal size
        if rank == 0 and size is None and exists(files[0]):
            size = check_pictures(files[:1], config.resize)
            judges.open_reference(judges.find_reference(size))

    _sample(generator, sampling, files, state, config, check_first_image)
    pair = None
    if other is not None:
        # Whatever runs the judged model, the other one runs as it would by itself.
        pair = Pair(other, replace(sampling, backend="auto"), out, count)
        pair.sample(config, state)
    if rank == 0:
        wait_for(lambda: count_missing(files), "images", out,
                 lambda missing: state.update("sampling", images - missing, images))  # fmt: skip
        check_first_image()
    measured = judges.judge(files)
    if measured is None:
        return wait_for_record(out, asked)
    compared = None if pair is None else pair.compare(config.resamples, more)
    decibels = None
    if isinstance(generator, PipeGenerator) and isinstance(other, PipeGenerator):
        lowered, _ = generator.run(sampling)
        decibels = sqnr(lowered, other, steps, seed + 1, config.place)
    if is_quantized(generator.model):
        state.update("layers", 0, 1)
        calls = (other or generator).calls(LAYER_SAMPLES, min(LAYER_STEPS, steps), seed + 2)
        report = layer_report(generator.model, calls, other.model if other else None)
        write_json(out / LAYERS, report)
    seconds, made = state.cost.seconds, state.cost.made
    assert size is not None
    record = judges.record(
        model=generator.describe(config.source or generator.name),
        sampling={
            "images": images,
            "seed": seed,
            "batch": batch,
            "steps": steps,
            "eta": config.eta,
            **{key: settings[key] for key in ("scheduler", "backend", "device", "prompts")},
            "shape": settings["shape"] or [3, *size],
            "size": list(size),
            "preprocessing": preparation(size, config.resize),
            "call": settings.get("call") or None,
        },
        metrics=measured,
        paired=compared,
        sqnr=decibels,
        cost={
            "sampling_seconds": round(seconds * images / made, 3) if made else None,
            "images_per_second": made / seconds if seconds else None,
            "milliseconds_a_call": generator.milliseconds(images, sampling),
            "megabytes": megabytes(generator.model),
        },
        asked=asked,
    )
    return close(record, out, files, state)


def _generator(pipe: Any, config: EvaluationConfig) -> Generator:
    """Makes images of a pipe or pipeline.

    Raises:
        ModelError: Prompts for a pipe, which takes none, an empty list of them, or no denoiser.
    """
    if not isinstance(pipe, Pipe):
        return PipelineGenerator(pipe, config.prompts, config.call)
    if config.prompts is not None:
        raise ModelError("prompts for a model that takes none", where=pipe.name)
    return PipeGenerator(pipe)


def _batch_of(out: Path) -> int:
    """The batch that the images of a run were made in; the default if there are none."""
    with contextlib.suppress(StorageError, ValueError, KeyError, TypeError):
        return int(read_json(out / "images" / "samples.json", "samples.json")["batch"])
    return BATCH


def _sample(
    generator: Generator, sampling: Sampling, files: list[Path], state: Progress,
    config: EvaluationConfig, check_first_image: Callable[[], None],
) -> None:  # fmt: skip
    """Makes this process's share of the images, and keeps count of their cost."""
    began, before, missing = time.perf_counter(), state.cost, count_missing(files)

    def on_batch(written: int) -> None:
        left = count_missing(files)
        if written:  # by this process; others made some meanwhile
            state.cost = SamplingCost(
                seconds=round(before.seconds + time.perf_counter() - began, 3),
                made=before.made + missing - left,
            )
        state.update("sampling", len(files) - left, len(files))
        check_first_image()

    on_batch(0)
    on_batch(generator.write(files[0].parent, len(files), sampling, config, on_batch))
