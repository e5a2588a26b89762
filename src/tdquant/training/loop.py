"""``train``: a loop over steps that loses nothing.

    batch of step k      <-  seed, k                     (order of the data, timesteps, noise)
    parameters, average  <-  AdamW on the mean loss over processes and parts of the batch
    checkpoint           <-  every N steps, at the end, and on SIGTERM or SIGINT

Whatever is random is a function of the seed and the step, so a run that was killed and resumed
ends in the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn
from torch.utils.data import Dataset

from tdquant.errors import StorageError, TrainingError, raise_collected
from tdquant.files.places import check_writable_folder, disk_errors
from tdquant.layers.base import fold_shifts
from tdquant.layers.correction import drop_correction
from tdquant.state import state_of
from tdquant.support.hooks import check_onloaded
from tdquant.support.optional import require
from tdquant.support.restoring import (
    keeping_modes,
    keeping_random_state,
    make_ordinary,
    with_gradients,
)
from tdquant.training.callbacks import Callback, JsonLog, Run, ShowProgress
from tdquant.training.checkpoints import LAST_STEP, Checkpoint, Checkpoints
from tdquant.training.groups import parameter_groups
from tdquant.training.learner import Learner
from tdquant.training.objective import DiffusionObjective
from tdquant.training.optimizing import rate_factor
from tdquant.training.order import loader
from tdquant.training.recompute import recomputing_blocks
from tdquant.training.settings import Checkpointing, Optimization
from tdquant.training.signals import Interruptions
from tdquant.training.structure import restore

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Training:
    """What a run gave.

    Attributes:
        average: A copy of the model with the moving average of all parameters: the one to freeze.
        step: Steps done.
        finished: Whether all steps were done; False after SIGTERM or SIGINT.
        losses: Loss of every step of this call.
        seconds: Time spent, over all restarts.
    """

    average: nn.Module
    step: int
    finished: bool
    losses: list[float]
    seconds: float


@with_gradients
def train(
    model: M,
    data: Dataset[Any],
    scheduler: Any = None,
    *,
    objective: DiffusionObjective | None = None,
    steps: int = 1000,
    batch: int = 32,
    rate: float = 1e-4,
    optimization: Optimization | None = None,
    seed: int = 0,
    workers: int = 0,
    out: str | Path | None = None,
    checkpoints: Checkpointing | None = None,
    callbacks: Sequence[Callback] = (),
    accelerator: Any = None,
    progress: bool = True,
    **loss_options: Any,
) -> M:
    """Trains a denoiser, quantized or float, in place.

    On several processes (``accelerate launch script.py``) each takes its share of every batch; the
    batches, and up to rounding the losses, are those of one process.

    Arguments:
        model: The denoiser ``model(x, t, **conditions)``. A quantized one has to be calibrated,
            unless a checkpoint is resumed.
        data: Items are images or latents ``(C, H, W)`` in [-1, 1], or pairs of them and a
            dictionary of conditions.
        scheduler: diffusers scheduler with the noise schedule; see ``DiffusionObjective``.
        objective: The loss, if it is not to be made from ``scheduler`` and the keywords of
            DiffusionObjective, which are taken here as well: ``loss``, ``min_snr``, ``teacher``,
            ``distill``, ``features``, ``feature_weight``, ``encode``, ``flip``.
        steps: Optimizer steps in all.
        batch: Samples of an optimizer step, over all processes and parts.
        rate: Learning rate of the network.
        optimization: Rates of scales, warm-up, weight decay, moving average, clipping, precision.
        seed: Seed of everything.
        workers: Processes that read data.
        out: Folder for checkpoints and the log; nothing is written if None.
        checkpoints: How often checkpoints are written, and whether the run continues from one.
        callbacks: Further callbacks; a progress bar and a log are added by default.
        accelerator: An ``accelerate.Accelerator`` without mixed precision, or None for the one
            that ``accelerate launch`` describes. FSDP wants its version 2.
        progress: Draw a bar.

    Returns:
        The model as it was trained, in evaluation mode. ``model.tdq.training`` is the
        ``Training``: the moving average to freeze, losses and times.

    Raises:
        TrainingError: An argument cannot be, the checkpoint has done more steps than asked for, or
            the loss or the gradient became NaN or infinite: the layer or the parameters are named,
            the model is as it was before that step, and the last checkpoint stays.
        StorageError: The checkpoint belongs to another model, or ``out`` cannot be written.
        DataError: There are fewer items than the batch.
    """
    if accelerator is None:
        accelerator = require("accelerate", "train").Accelerator(mixed_precision="no")
    how, kept = optimization or Optimization(), checkpoints or Checkpointing()
    _check(steps, batch, how.accumulate, accelerator.num_processes)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError(
            "there is nothing to train",
            where=type(model).__name__,
            why="no parameter takes a gradient; a frozen model has none",
            fix="the model that tdq.freeze was given",
        )
    check_onloaded(model, "tdq.train")
    make_ordinary(model)
    drop_correction(model, "train")
    fold_shifts(model)
    if objective is None:
        objective = DiffusionObjective(scheduler, **loss_options)
    elif loss_options:
        raise TrainingError(f"objective= and {', '.join(loss_options)}=: give one or the other")
    out = None if out is None else Path(out)
    if out is not None:
        check_writable_folder(out)
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
    folders = None if out is None else Checkpoints(out / "checkpoints", kept.keep)
    found = folders.latest() if folders and kept.resume else None
    if found is not None and found.step > steps:
        raise TrainingError(
            f"the run has done {found.step} steps, and {steps} are asked for",
            where=str(found.path),
            why="it continues from its checkpoint",
            fix=f"steps={found.step}, another folder, or Checkpointing(resume=False)",
        )
    if found is not None:
        restore(model, found.state["structure"], str(found.path))
        _load(model, found)
    with keeping_modes(model), keeping_random_state():
        learner = Learner(
            model.train(),
            parameter_groups(
                model, rate, rates=how.rates, step_rate=how.step_rate, decay=how.decay
            ),
            objective,
            accelerator,
            ema=how.ema,
            clip=how.clip,
            accumulate=how.accumulate,
            precision=how.precision,
            seed=seed,
        )
        main = accelerator.is_main_process
        run = Run(model, learner.averaged, 0, steps, 0.0, out, main)
        if found is not None:
            learner.resume(found)
            run.step, run.seconds = found.step, float(found.state["seconds"])
        warmup = min(5000, steps // 20) if how.warmup is None else how.warmup
        order = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        feed = loader(data, batch, seed=seed, start=run.step, workers=workers, **order)
        told = [c for c in _told(callbacks, out, progress) if main or c.everywhere]

        def save() -> None:
            tensors, state = learner.tensors(), learner.state() | {"seconds": run.seconds}
            if folders is not None and main:
                folders.save(run.step, tensors, state)

        losses: list[float] = []
        with contextlib.ExitStack() as stack:
            if how.recompute:
                stack.enter_context(recomputing_blocks(model))
            stack.enter_context(_telling(told, run))
            stack.enter_context(_without_stride_warnings())
            interruptions = stack.enter_context(Interruptions())
            # Only now: workers inherit the handlers, or Ctrl-C, which reaches them too, would end
            # them while the step in hand waits for its batch.
            batches = iter(feed)
            stop = False
            while run.step < steps and not stop:
                began = time.perf_counter()
                factor = rate_factor(run.step, steps, warmup, how.schedule)
                record = learner.learn(next(batches), run.step, factor)
                run.step += 1
                run.seconds += time.perf_counter() - began
                losses.append(record["loss"])
                for callback in told:
                    callback.after_step(run, record | {"rate": rate * factor})
                stop = learner.agree(interruptions.asked)
                if run.step % kept.every == 0 or stop or run.step == steps:
                    save()
        accelerator.wait_for_everyone()
        learner.release()
    trained = learner.plain().eval()
    done = Training(learner.averaged(), run.step, run.step >= steps, losses, run.seconds)
    # A sharded model is returned as a whole copy; the one that was given tells of it, too.
    state_of(model).training = state_of(trained).training = done
    return cast(M, trained)


@contextlib.contextmanager
def _telling(callbacks: Sequence[Callback], run: Run) -> Iterator[None]:
    """Starts callbacks, and ends those that were started, whatever happens in between: they hold
    files and bars.
    """
    started: list[Callback] = []
    try:
        for callback in callbacks:
            callback.start(run)
            started.append(callback)
        yield
    except BaseException:
        for error in _end(started, run):
            # The error that ended the run is the one to be seen.
            warnings.warn(f"a callback could not end: {error!r}", stacklevel=2)
        raise
    errors = _end(started, run)
    if errors:
        raise errors[0]


def _end(callbacks: Sequence[Callback], run: Run) -> list[Exception]:
    """Ends every callback; gives what they raised."""
    errors = []
    for callback in callbacks:
        try:
            callback.end(run)
        except Exception as error:
            errors.append(error)
    return errors


@contextlib.contextmanager
def _without_stride_warnings() -> Iterator[None]:
    """Gradients of (1, d) weights come with other strides of the dimension of size 1: DDP tells
    everybody, although nothing is slower for it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield


def _check(steps: int, batch: int, accumulate: int, world: int) -> None:
    found = []
    if not 1 <= steps <= LAST_STEP:
        found.append(f"steps={steps}: 1 to {LAST_STEP}")
    if batch < 1 or batch % (world * accumulate):
        found.append(
            f"batch={batch}: a multiple of {world} processes times {accumulate} parts (accumulate)"
        )
    raise_collected(TrainingError, found, "the settings of training")


def _load(model: nn.Module, found: Checkpoint) -> None:
    try:
        model.load_state_dict(found.tensors("model"))
    except RuntimeError as error:
        raise StorageError(
            "the checkpoint is of another model",
            where=str(found.path),
            why=" ".join(str(error).split()[:60]),
            fix="resume with the same model and recipe, or train into another folder",
        ) from error


def _told(callbacks: Sequence[Callback], out: Path | None, progress: bool) -> list[Callback]:
    log = [] if out is None else [JsonLog(out)]
    return [*callbacks, *log, *([ShowProgress()] if progress else [])]
