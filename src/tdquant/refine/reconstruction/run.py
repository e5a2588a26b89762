"""``reconstruct``: rounds weights by the output of blocks, block after block."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tdquant.calibration.bias import bias_shifts
from tdquant.calls.call import Call
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.files.job_folder import JobFolder, open_job
from tdquant.files.places import check_writable_folder
from tdquant.freezing import check_calibrated
from tdquant.layers import QuantLayer
from tdquant.layers.correction import drop_correction
from tdquant.layers.float_bias import drop_bias_correction
from tdquant.quantizers import (
    RoundedWeight,
    ShiftedWeight,
    WeightQuantizer,
    activation_quantizers,
)
from tdquant.refine.reconstruction.adaround import Rates
from tdquant.refine.reconstruction.blocks import SCOPES, find_blocks, learned_layers
from tdquant.refine.reconstruction.capture import with_times
from tdquant.refine.reconstruction.job import BlockReport, Job
from tdquant.refine.reconstruction.processes import Processes, launched
from tdquant.refine.reconstruction.record import job_digest
from tdquant.state import note, state_of
from tdquant.support.hooks import check_onloaded
from tdquant.support.progress import Bar
from tdquant.support.restoring import changes_model, evaluating, keeping_gradients
from tdquant.support.tables import text_table

M = TypeVar("M", bound=nn.Module)

METHODS = ("adaround", "gptq")


@dataclass(frozen=True)
class Reconstruction:
    """The report of ``reconstruct``. ``str()`` gives a table.

    Attributes:
        blocks: One report a block, in the order of the work.
        method: The method.
        seconds: Wall time of this run, without the blocks that a checkpoint had.
    """

    blocks: list[BlockReport]
    method: str
    seconds: float

    def __str__(self) -> str:
        rows = []
        for block in self.blocks:
            ratio = block.after / block.before if block.before else 1.0
            rows.append([block.path or "(the model)", f"{block.before:.3g}", f"{ratio:.2f}"])
        table = text_table(rows, ["block", "error", "left of it"], right=[1, 2])
        return f"{self.method}: {len(rows)} blocks in {self.seconds:.0f} s\n{table}"


@changes_model
def reconstruct(
    model: M,
    batches: Iterable[Call],
    *,
    method: str = "adaround",
    scope: str = "block",
    iterations: int = 200,
    batch: int = 32,
    rates: Rates | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 200,
    memory: int = 2 << 30,
    seed: int = 0,
    progress: bool = True,
    accelerator: Any = None,
) -> M:
    """Chooses the codes of all weights by the output of blocks, in place.

    Blocks follow each other in the order in which the model calls them. Each learns from the
    output of the quantized blocks before it, at the timestep of each sample, towards the output of
    the float model's block. Afterwards every weight lies on its grid: ``freeze`` finds the learned
    codes, and training can continue from them.

    Biases that ``calibrate`` corrected made up for the codes before: blocks learn with the float
    ones, and after ``"gptq"`` they are corrected anew, for the codes that it chose.

    On several processes (``accelerate launch script.py``) each keeps every n-th of the calls,
    which are the same for all, and the result is that of one process up to rounding.

    Arguments:
        model: A quantized and calibrated model.
        batches: Calls, as for ``calibrate``. They are kept in memory, inputs and outputs of
            blocks for one block at a time.
        method: ``"adaround"`` learns rounding, steps, biases and activation scales by gradients;
            ``"gptq"`` chooses codes layer by layer in closed form, many times faster.
        scope: What learns at once: each ``"layer"``, each ``"block"``, or the whole ``"model"``
            towards its output, the best where the model can be trained on this machine. A block
            takes the memory of training it alone.
        iterations: Updates for each block; the whole model needs 300 or more.
        batch: Samples of an update, over all processes.
        rates: Learning rates.
        checkpoint: A folder, from which a stopped run continues to the same bits.
        save_every: Updates after which a block that learns is written to it.
        memory: Bytes of a block's inputs and outputs to keep in memory; the rest is on disk.
        seed: Seed of all draws.
        progress: Draw a bar.
        accelerator: An ``accelerate.Accelerator``, or None for the one that ``accelerate launch``
            describes.

    Returns:
        The model. ``model.tdq.reconstruction`` is the report on each block.

    Raises:
        CalibrationError: No batches, scales that are not calibrated, no weights to round, or an
            invalid argument. Whatever is raised, the model is left as it was.
        ConversionError: The model is not quantized.
        StorageError: The checkpoint is damaged or of another job, or cannot be written.
    """
    started = time.perf_counter()
    clock_of(model)
    rates = rates or Rates()
    _check(model, method, scope, iterations, batch)
    if checkpoint is not None:
        check_writable_folder(checkpoint)
    check_onloaded(model, "tdq.reconstruct")
    calls = list(batches)
    if not calls:
        raise CalibrationError(
            "no batches", where="reconstruct", fix="yield calls, such as (x, t)"
        )
    drop_correction(model, "reconstruct")
    corrected = drop_bias_correction(model)
    accelerator = accelerator or launched()
    world = Processes(accelerator)
    options = {
        "method": method, "scope": scope, "iterations": iterations, "batch": batch, "seed": seed,
        "rates": asdict(rates),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder: JobFolder | None = None
        if checkpoint is not None:
            asked = {"digest": job_digest(model, calls, options)}
            job = open_job(Path(checkpoint), "reconstruction", asked, writes=world.rank == 0)
            folder = stack.enter_context(job)
        stack.enter_context(keeping_gradients(model))
        stack.enter_context(evaluating(model))
        keep = stack.enter_context(_restoring(model))
        paths = find_blocks(model, with_times(model, calls[0])[0], scope)
        learns = method == "adaround"
        bar = Bar(
            f"reconstructing ({method})",
            len(paths) * (iterations if learns else 1),
            show=progress and world.rank == 0,
        )
        work = Job(
            model,
            calls,
            learns=learns,
            iterations=iterations,
            batch=batch,
            rates=rates,
            memory=memory,
            seed=seed,
            world=world,
            folder=folder,
            save_every=save_every,
            bar=bar,
        )
        try:
            reports = [work.reconstruct(number, path) for number, path in enumerate(paths)]
        finally:
            bar.close()
        # AdaRound learns biases with the codes; the float weights are there until ``keep``.
        shifts = bias_shifts(model, work.calls) if corrected and not learns else {}
        keep(shifts)
    facts = {"method": method, "scope": scope, "calls": len(calls), "blocks": len(reports)}
    note(model, "reconstruct", **facts, **({"iterations": iterations} if learns else {}))
    seconds = time.perf_counter() - started
    state_of(model).reconstruction = Reconstruction(reports, method, seconds)
    return model


def _check(model: nn.Module, method: str, scope: str, iterations: int, batch: int) -> None:
    mistakes = []
    if method not in METHODS:
        mistakes.append(f"no method {method!r}: one of {', '.join(METHODS)}")
    if scope not in SCOPES:
        mistakes.append(f"no scope {scope!r}: one of {', '.join(SCOPES)}")
    if iterations < 1 or batch < 1:
        mistakes.append(f"iterations={iterations}, batch={batch}: both at least 1")
    if not learned_layers(model):
        mistakes.append("no layer has weights to round: quantize with weights below 32 bits")
    if mistakes:
        raise CalibrationError(
            "\n  - ".join(["invalid arguments:", *mistakes]), where="reconstruct"
        )
    check_calibrated(model, "tdq.reconstruct(model, batches)")


@torch.no_grad()
def _keep_rounding(layer: QuantLayer, rounded: RoundedWeight) -> None:
    """Writes the numbers of decided codes into the weight of a layer, in place: its own quantizer
    rounds them to these codes.
    """
    layer.weight.copy_(rounded(layer.weight))
    if isinstance(layer.weight_quantizer, ShiftedWeight):
        layer.weight_quantizer = layer.weight_quantizer.plain()
    layer.weight_quantizer.step.copy_(rounded.step)


@contextlib.contextmanager
def _restoring(model: nn.Module) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
    """Restores the model, unless the function that it yields was called, which writes the learned
    numbers into the weights, and takes shifts of outputs, by path, off the biases.
    """
    layers = dict(learned_layers(model))
    quantizers = {name: layer.weight_quantizer for name, layer in layers.items()}
    moving = [layer.bias for layer in layers.values() if layer.bias is not None]
    moving += [p for _, q in activation_quantizers(model) for p in q.scale.parameters()]
    values = [p.detach().clone() for p in moving]
    kept = False

    @torch.no_grad()
    def keep(shifts: Mapping[str, Tensor]) -> None:
        nonlocal kept
        for name, shift in shifts.items():
            bias: Any = model.get_submodule(name).bias
            bias.sub_(shift)
        for name, layer in layers.items():
            rounded, before = layer.weight_quantizer, quantizers[name]
            if not isinstance(rounded, RoundedWeight):
                continue  # no call reached it
            assert isinstance(before, WeightQuantizer)
            layer.weight_quantizer = before
            _keep_rounding(layer, rounded)
        kept = True

    model.requires_grad_(False)
    try:
        yield keep
    finally:
        with torch.no_grad():
            if not kept:
                for name, layer in layers.items():
                    layer.weight_quantizer = quantizers[name]
                for parameter, value in zip(moving, values, strict=True):
                    parameter.copy_(value)
