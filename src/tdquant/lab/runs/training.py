"""Training from a configuration: load, quantize, calibrate, train, freeze, in a folder that can be
gone on with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration import calibrate
from tdquant.calls import trajectories
from tdquant.clock import is_quantized
from tdquant.diffusion.sampling import sample, stream_of
from tdquant.errors import ConfigError, ModelError, StorageError
from tdquant.freezing import freeze
from tdquant.lab.data import dataset_from_config
from tdquant.lab.runs.comparing import differences
from tdquant.lab.runs.folder import RunFolder
from tdquant.lab.runs.opening import open_pipe, reopen
from tdquant.models import Pipe, load_compvis, save_compvis
from tdquant.models.compvis.published import can_be_published
from tdquant.quantization import quantize
from tdquant.recipe import Recipe
from tdquant.refine.correction import correct
from tdquant.state import state_of
from tdquant.storage import save
from tdquant.support.memory import trim_heap
from tdquant.support.optional import require
from tdquant.training import (
    Callback,
    Checkpointing,
    DiffusionObjective,
    Optimization,
    SampleGrid,
    TensorBoard,
    Training,
    train,
)
from tdquant.training.order import loader

Say = Callable[[str], None]


def run_training(
    config: dict[str, Any],
    options: dict[str, Any],
    out: str | Path,
    recipe: Recipe | None,
    *,
    checkpoint: str | Path | None = None,
    rate: float,
    distill: float | None = None,
    recompute: bool = False,
    train_scales: bool = True,
    workers: int = 0,
    progress: bool = True,
    say: Say = print,
) -> Training | None:
    """Trains what a configuration describes; run again with the same arguments, it goes on.

    Arguments:
        config: Latent-diffusion configuration, from ``read_config``.
        options: Settings of training, from ``training_options``.
        out: Folder of the run.
        recipe: How to quantize, or None to train in float.
        checkpoint: What to start from: a file, a run, an embedded model's name; None starts from
            random weights.
        rate: Learning rate.
        distill: Share of the float model's output in the target, or None without a teacher.
        recompute: Gradient checkpointing.
        train_scales: False stops after calibration, and freezes that.
        workers: Processes that read data.
        progress: Draw bars.
        say: Takes lines about what is going on.

    Returns:
        What training gave, or None if nothing was trained.

    Raises:
        StorageError: The folder has a run with other arguments.
        ConfigError: The configuration has no training data.
    """
    accelerator = require("accelerate", "train").Accelerator(mixed_precision="no")
    torch.manual_seed(options["seed"])  # of weights that nothing fills
    say = say if accelerator.is_main_process else _quiet
    folder = RunFolder(Path(out))
    node = (config.get("data") or {}).get("params") or {}
    batch = int(node.get("batch_size", 32)) * accelerator.num_processes * options["accumulate"]
    asked = {
        "config": {k: v for k, v in config.items() if k != "tdquant"},  # options has that
        "recipe": None if recipe is None else recipe.to_dict(),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "rate": rate,
        "distill": distill,
        "batch": batch,
        "options": options,
    }
    asked = json.loads(json.dumps(asked))
    found = folder.checkpoints.latest() if folder.exists else None
    if folder.exists:
        _check_asked(folder, asked)
    if "train" not in node:
        raise ConfigError("no training data", where="data.params.train", fix="give it a target")
    shown = progress and accelerator.is_main_process
    data: Any = dataset_from_config(node["train"], "data.params.train", progress=shown)
    say(f"data: {len(data):,} images of {data.name}")
    pipe = reopen(folder, found) if found else _pipe(config, checkpoint)
    if pipe.vae is not None:
        pipe.vae.to(accelerator.device).eval().requires_grad_(False)
    if checkpoint is None and found is None:
        pipe = _with_factor(pipe, data, batch, options["seed"], say)
    samples = options.get("correct", 0) if recipe is not None else 0
    start = None
    if distill is not None or samples:
        source = _pipe(config, checkpoint) if found else pipe
        start = copy.deepcopy(source.unet).to(accelerator.device).eval()
    if samples and (checkpoint is None or start is None or is_quantized(start)):
        raise ConfigError(
            "there is no float model to correct against",
            where="tdquant.correct",
            why="the run starts from random weights or from a quantized model",
            fix="--ckpt with the float model, or no --correct",
        )
    objective = DiffusionObjective(
        pipe.scheduler,
        loss=options["loss"] or config["model"]["params"].get("loss_type", "l2"),
        min_snr=options["min_snr"],
        teacher=None if distill is None else start,
        distill=distill or 0.0,
        encode=None if pipe.vae is None else pipe.encode,
        flip=data.flip,
    )
    unet = pipe.unet.to(accelerator.device)
    quantized = is_quantized(unet)
    if quantized and found is None:
        say("the checkpoint is of a quantized model: its own grids and scales train on")
    elif found is None and recipe is not None:
        say(f"W{recipe.weights}A{recipe.activations}, {recipe.scale} scales")
        quantize(unet, recipe)
        calls = _calls(objective, data, batch, options, accelerator.device)
        calibrate(unet, calls, seed=options["seed"], progress=shown)
        say(str(state_of(unet).calibration))
        trim_heap()
    if found is not None and not train_scales:  # what was trained so far is frozen
        unet.load_state_dict(found.tensors("model") | found.tensors("average"))
        say(f"not trained on: the average of step {found.step} is frozen")
    elif accelerator.is_main_process:
        folder.begin(pipe, config, asked)
    accelerator.wait_for_everyone()
    # Training encodes; the decoder's weights, which lie in the folder, come back when they are
    # written again.
    decoder = None if options["sample_every"] else getattr(pipe.vae, "decoder", None)
    if decoder is not None and train_scales:
        decoder.to("meta")
    trained: Training | None = None
    if train_scales:
        say(f"{'going on in' if found else 'training into'} {folder.path}")
        train(
            unet,
            data,
            objective=objective,
            batch=batch,
            rate=rate,
            optimization=Optimization(
                recompute=recompute, **{name: options[name] for name in _OPTIMIZATION}
            ),
            workers=workers,
            out=folder.path,
            callbacks=_callbacks(pipe, folder, options, accelerator.device),
            accelerator=accelerator,
            progress=progress,
            checkpoints=Checkpointing(options["save_every"]),
            steps=options["steps"],
            seed=options["seed"],
        )
        trained = state_of(unet).training
        if not trained.finished:
            say(f"stopped after step {trained.step}; the same command goes on from there")
            return trained
        trim_heap()
    if trained is not None and accelerator.is_main_process and can_be_published(unet):
        if decoder is not None:
            decoder.to_empty(device=accelerator.device)
            folder.fill_first_stage(pipe.vae)
        averaged = dict(trained.average.named_parameters())
        save_compvis(replace(pipe, unet=unet), folder.published, ema=averaged)
        say(f"checkpoint in the published format: {folder.published}")
    if recipe is not None and accelerator.is_main_process:
        frozen = freeze(trained.average if trained else unet)
        if samples and start is not None:
            own = trajectories(
                frozen, pipe.scheduler, samples, pipe.shape, steps=20, seed=options["seed"],
                device=accelerator.device,
            )  # fmt: skip
            frozen = correct(frozen, start, own, progress=progress)
        save(frozen.cpu(), folder.frozen)
        say(f"frozen model: {folder.frozen}")
    return trained


_OPTIMIZATION = ("rates", "warmup", "schedule", "ema", "clip", "accumulate", "precision")
_MAY_CHANGE = ("steps", "save_every", "sample_every", "accumulate", "correct")


def _quiet(words: str) -> None:
    """Says nothing."""


def _check_asked(folder: RunFolder, asked: dict[str, Any]) -> None:
    changed = [
        line
        for line in differences(folder.asked(), asked)
        if line.split(":")[0] not in {f"options.{name}" for name in _MAY_CHANGE}
    ]
    if changed:
        raise StorageError(
            "there is a run with other arguments:\n  - " + "\n  - ".join(changed),
            where=str(folder.path),
            fix="another --name, or the arguments that it was started with",
        )


def _pipe(config: dict[str, Any], checkpoint: str | Path | None) -> Pipe:
    """The model to start from."""
    if checkpoint is None or Path(checkpoint).is_file():
        return load_compvis(config, checkpoint)
    pipe = open_pipe(checkpoint)
    if is_quantized(pipe.unet):
        raise ModelError(
            f"{checkpoint} is quantized already",
            fix="start from the float model; --resume goes on with a quantized run",
        )
    wanted = load_compvis(config, quiet=True).unet.config
    found = getattr(pipe.unet, "config", None)
    if found != wanted:
        raise ModelError(
            f"{checkpoint} is another model than the configuration describes",
            where=type(pipe.unet).__name__,
            why="a run goes on from its configuration, which must describe its UNet",
            fix="the configuration of the model; any other denoiser trains with tdq.train",
        )
    return pipe


def _with_factor(pipe: Pipe, data: Any, batch: int, seed: int, say: Say) -> Pipe:
    """Measures the factor of the latents on the first batch, if the configuration leaves it to
    training (``scale_by_std``).
    """
    if pipe.vae is None or pipe.scale_factor is not None:
        return pipe
    images = next(iter(loader(data, batch, seed=seed)))
    streams = [stream_of(seed, i, stream=2) for i in range(len(images))]
    pipe = pipe.with_measured_factor(images.to(next(pipe.vae.parameters())), streams)
    say(f"scale_by_std: latents times {pipe.scale_factor:.5f}, measured on the first batch")
    return pipe


def _calls(
    objective: DiffusionObjective,
    data: Any,
    batch: int,
    options: dict[str, Any],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noised training images, which every process draws alike: of one batch, under many draws of
    time and noise, if the scales start as published.
    """
    seed, count = options["seed"], options["calibration_batches"]
    batches: Iterable[Tensor] = islice(iter(loader(data, batch, seed=seed)), count)
    if options["scheme"] == "published":
        batches = repeat(next(iter(batches)), count)
    for step, images in enumerate(batches):
        drawn = objective.draw(images, seed + 1, step, range(batch), device)
        yield drawn.x_t, drawn.t


def _callbacks(
    pipe: Pipe, folder: RunFolder, options: dict[str, Any], device: torch.device
) -> list[Callback]:
    board = TensorBoard(folder.path)
    every = options["sample_every"]
    if not every:
        return [board]

    def draw(model: nn.Module) -> Tensor:
        steps = min(50, len(pipe.scheduler.alphas_cumprod))
        latents = sample(
            model, pipe.scheduler, 16, pipe.shape, steps=steps, device=device, progress=False
        )
        with torch.no_grad():
            return pipe.decode(latents.to(device))

    return [board, SampleGrid(folder.path, draw, every, board)]
