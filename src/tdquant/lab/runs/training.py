"""Training from a configuration: load, quantize, calibrate, train, freeze, in a folder in which
the same call goes on after a stop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import trajectories
from tdquant.choice import calibrate
from tdquant.clock import is_quantized
from tdquant.diffusion.sampling import sample
from tdquant.errors import ConfigError
from tdquant.files.documents import json_safe
from tdquant.files.places import check_writable_folder
from tdquant.freezing import freeze
from tdquant.lab.data import dataset_from_config
from tdquant.lab.run_folder import RunFolder
from tdquant.lab.runs.starting import check_asked, start_model, with_factor
from tdquant.models import Pipe, save_compvis
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
from tdquant.training.checkpoints import Checkpoint
from tdquant.training.order import loader

_OPTIMIZATION = (
    "rates", "step_rate", "warmup", "schedule", "ema", "clip", "accumulate", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """A run in this process.

    Attributes:
        options: Settings of training.
        folder: Its folder.
        batch: Images of a step, over all processes.
        device: Where to train.
        main: Whether this process writes.
        progress: Draw bars.
        report: Called with lines about what happens; ignores them in other processes.
    """

    options: dict[str, Any]
    folder: RunFolder
    batch: int
    device: torch.device
    main: bool
    progress: bool
    report: Callable[[str], object]


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
    report: Callable[[str], object] = lambda line: None,
) -> Training | None:
    """Trains the model of a configuration; called again with the same arguments, it goes on.

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
        report: Called with lines about what happens.

    Returns:
        The result of ``tdq.train``, or None if nothing was trained.

    Raises:
        StorageError: The folder has a run with other arguments, or cannot be written.
        ConfigError: The configuration has no training data, or there is no float model to correct
            against.
    """
    accelerator = require("accelerate", "train").Accelerator(mixed_precision="no")
    torch.manual_seed(options["seed"])  # of weights that nothing fills
    main, device = accelerator.is_main_process, accelerator.device
    node = (config.get("data") or {}).get("params") or {}
    batch = int(node.get("batch_size", 32)) * accelerator.num_processes * options["accumulate"]
    if not main:
        report = lambda line: None  # noqa: E731
    check_writable_folder(out)
    folder = RunFolder(Path(out))
    run = _Run(options, folder, batch, device, main, progress and main, report)
    asked = json_safe(
        {
            "config": {k: v for k, v in config.items() if k != "tdquant"},  # options has that
            "recipe": None if recipe is None else recipe.to_dict(),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "rate": rate,
            "distill": distill,
            "batch": batch,
            "options": options,
        }
    )
    found = folder.checkpoints.latest() if folder.exists else None
    if folder.exists:
        check_asked(folder, asked)
    if "train" not in node:
        raise ConfigError("no training data", where="data.params.train", fix="give it a target")
    data: Any = dataset_from_config(node["train"], "data.params.train", progress=run.progress)
    report(f"data: {len(data):,} images of {data.name}")
    pipe = folder.reopen(found) if found else start_model(config, checkpoint)
    if pipe.vae is not None:
        pipe.vae.to(device).eval().requires_grad_(False)
    if checkpoint is None and found is None:
        pipe = with_factor(pipe, data, batch, options["seed"], report)
    samples = options.get("correct", 0) if recipe is not None else 0
    exact = None
    if distill is not None or samples:
        source = start_model(config, checkpoint) if found else pipe
        exact = copy.deepcopy(source.unet).to(device).eval()
    if samples and (checkpoint is None or exact is None or is_quantized(exact)):
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
        teacher=None if distill is None else exact,
        distill=distill or 0.0,
        encode=None if pipe.vae is None else pipe.encode,
        flip=data.flip,
    )
    pipe.unet.to(device)
    if found is None:
        _quantize(pipe.unet, recipe, objective, data, run)
    if found is not None and not train_scales:  # what was trained so far is frozen
        pipe.unet.load_state_dict(found.tensors("model") | found.tensors("average"))
        report(f"not trained on: the average of step {found.step} is frozen")
    elif main:
        folder.begin(pipe, config, asked)
    accelerator.wait_for_everyone()
    trained = None
    if train_scales:
        how = Optimization(recompute=recompute, **{name: options[name] for name in _OPTIMIZATION})
        more = {"rate": rate, "optimization": how, "workers": workers}
        trained = _train(pipe, data, objective, found, run, accelerator=accelerator, **more)
        if not trained.finished:
            report(f"stopped after step {trained.step}; the same command goes on from there")
            return trained
    if recipe is not None and main:
        frozen = freeze(trained.average if trained else pipe.unet)
        if samples and exact is not None:
            own = trajectories(
                frozen, pipe.scheduler, samples, pipe.shape, steps=20, seed=options["seed"],
                device=device,
            )  # fmt: skip
            frozen = correct(frozen, exact, own, progress=progress)
        save(frozen.cpu(), folder.frozen)
        report(f"frozen model: {folder.frozen}")
    return trained


def _quantize(
    unet: nn.Module, recipe: Recipe | None, objective: DiffusionObjective, data: Any, run: _Run
) -> None:
    """Quantizes and calibrates the denoiser of a new run, unless it is quantized already."""
    if is_quantized(unet):
        run.report("the checkpoint is of a quantized model: its own grids and scales train on")
    elif recipe is not None:
        run.report(f"W{recipe.weights}A{recipe.activations}, {recipe.scale} scales")
        quantize(unet, recipe)
        calls = _calls(objective, data, run)
        seed = run.options["seed"]
        calibrate(unet, calls, seed=seed, progress=run.progress)
        run.report(str(state_of(unet).calibration))
        trim_heap()


def _calls(objective: DiffusionObjective, data: Any, run: _Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Noised training images, which every process draws alike: of one batch, under many draws of
    time and noise, if the scales start as published.
    """
    seed, count = run.options["seed"], run.options["calibration_batches"]
    batches: Iterable[Tensor] = islice(iter(loader(data, run.batch, seed=seed)), count)
    if run.options["scheme"] == "published":
        batches = repeat(next(iter(batches)), count)
    for step, images in enumerate(batches):
        drawn = objective.draw(images, seed + 1, step, range(run.batch), run.device)
        yield drawn.x_t, drawn.t


def _train(
    pipe: Pipe,
    data: Any,
    objective: DiffusionObjective,
    found: Checkpoint | None,
    run: _Run,
    **more: Any,
) -> Training:
    """Trains, and writes the model in the published format where it has one."""
    # Training encodes; the decoder's weights, which lie in the folder, come back when they are
    # written again.
    decoder = None if run.options["sample_every"] else getattr(pipe.vae, "decoder", None)
    if decoder is not None:
        decoder.to("meta")
    run.report(f"{'going on in' if found else 'training into'} {run.folder.path}")
    train(
        pipe.unet,
        data,
        objective=objective,
        batch=run.batch,
        out=run.folder.path,
        callbacks=_callbacks(pipe, run),
        progress=run.progress,
        checkpoints=Checkpointing(run.options["save_every"]),
        steps=run.options["steps"],
        seed=run.options["seed"],
        **more,
    )
    trained: Training = state_of(pipe.unet).training
    if not trained.finished:
        return trained
    trim_heap()
    if run.main and can_be_published(pipe.unet):
        if decoder is not None:
            decoder.to_empty(device=run.device)
            run.folder.fill_first_stage(pipe.vae)
        averaged = dict(trained.average.named_parameters())
        save_compvis(pipe, run.folder.published, ema=averaged)
        run.report(f"checkpoint in the published format: {run.folder.published}")
    return trained


def _callbacks(pipe: Pipe, run: _Run) -> list[Callback]:
    board = TensorBoard(run.folder.path)
    every = run.options["sample_every"]
    if not every:
        return [board]

    def draw(model: nn.Module) -> Tensor:
        steps = min(50, len(pipe.scheduler.alphas_cumprod))
        latents = sample(
            model, pipe.scheduler, 16, pipe.shape, steps=steps, device=run.device, progress=False
        )
        with torch.no_grad():
            return pipe.decode(latents.to(run.device))

    return [board, SampleGrid(run.folder.path, draw, every, board)]
