"""What is measured: a frozen model in a folder, and the float model that it is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.calls import record_denoiser
from tdquant.choice import calibrate
from tdquant.clock import remove_clock
from tdquant.errors import ModelError
from tdquant.freezing import freeze
from tdquant.lab.calling import check_call
from tdquant.lab.sample_shapes import sample_shape
from tdquant.layers import quantized_layers
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.models import load_embedded
from tdquant.quantization import quantize
from tdquant.recipe import Recipe
from tdquant.storage import load, save
from tdquant.support.optional import require


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        source: What was given: an embedded model's name, a folder, a file.
        folder: Folder of the frozen model, as ``tdq.save`` wrote it.
        shape: Shape of one sample.
        scheduler: diffusers scheduler, whose trajectories of the float model are the test calls.
        against: In words, the float model that errors are measured against.
        embedded: Name of the embedded model that was quantized, if it was one.
    """

    source: str
    folder: Path
    shape: tuple[int, ...]
    scheduler: Any
    against: str
    embedded: str | None = None

    def float_model(self) -> nn.Module:
        """The float model."""
        return float_model(self.embedded, self.folder)


def float_model(embedded: str | None, folder: Path) -> nn.Module:
    """The embedded model of that name, or the saved model without its quantizers."""
    if embedded is not None:
        return load_embedded(embedded).unet
    model = load(folder)
    for _, layer in quantized_layers(model):
        layer.input_quantizer = layer.weight_quantizer = nn.Identity()
    for module in model.modules():
        if isinstance(module, QuantAttention):
            for operand in OPERANDS:
                setattr(module, f"{operand}_quantizer", nn.Identity())
    remove_clock(model)
    vars(model).pop("tdq", None)  # the rest of the state describes the quantized model
    return model


@contextmanager
def subject_from_embedded(
    name: str, recipe: Recipe, seed: int = 0, progress: bool = True
) -> Iterator[Subject]:
    """Quantizes an embedded model by a recipe, calibrated on its own trajectories.

    Raises:
        ModelError: No such model.
    """
    pipe = load_embedded(name)
    model = quantize(pipe.unet, recipe)
    calls = record_denoiser(
        load_embedded(name).unet,
        pipe.scheduler,
        16,
        pipe.shape,
        steps=25,
        batch=16,
        seed=seed + 1,
    )
    calibrate(model, calls, seed=seed, progress=progress)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(freeze(model), Path(scratch) / "frozen")
        yield Subject(name, folder, pipe.shape, pipe.scheduler, f"{name} in float", name)


@contextmanager
def subject_from_folder(
    folder: Path,
    shape: tuple[int, ...] | None = None,
    scheduler: Any = None,
    source: str = "",
) -> Iterator[Subject]:
    """A model that ``tdq.save`` wrote.

    Arguments:
        folder: Where it is.
        shape: Shape of one sample; None asks the model's configuration.
        scheduler: Its noise schedule; DDIM's defaults if None.
        source: What to call the model; the folder if empty.

    Raises:
        StorageError: The folder cannot be read.
        ModelError: The model's class or the shape of its samples is not known, or it cannot be
            called as ``model(x, t)``.
    """
    model = load(folder)
    shape = shape or sample_shape(model)
    if shape is None:
        raise ModelError(
            "the shape of a sample is not known",
            where=str(folder),
            why="the model's configuration does not tell",
            fix="--shape, such as 3,32,32",
        )
    check_call(
        model,
        shape,
        torch.tensor(0),
        source or str(folder),
        "its pipeline is timed by tdquant evaluate PIPELINE; --shape if its samples have another",
    )
    del model
    if scheduler is None:
        scheduler = require("diffusers", "diffusers").DDIMScheduler(clip_sample=False)
    yield Subject(source or str(folder), folder, shape, scheduler, "its own weights in float")
