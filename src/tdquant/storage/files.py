"""Reads and checks the two files of a saved model, without building it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, model_validator

from tdquant.errors import StorageError
from tdquant.files.checkpoints import LazyTensor
from tdquant.files.checkpoints.opening import open_checkpoint, open_safetensors
from tdquant.files.checkpoints.safetensors_format import SUFFIX
from tdquant.files.documents import Document, Gap, Section, read_json
from tdquant.files.looking import exists
from tdquant.files.writing import recover
from tdquant.numerics.packing import stored_bits
from tdquant.quantizers.groups import MULTIPLIER_BITS, count_groups
from tdquant.storage.diffusers_folder import CONFIG, quantized_parts, read_config, weight_files

FORMAT, VERSION = "tdquant", 2
"""Since version 2 the codes of weights have no gaps, and groups of them may have multipliers."""
INDEX, TENSORS = "tdquant.json", "model.safetensors"
_FIX = "save the model again"


def _dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"is no dtype of torch: {name:.60}")
    return name


Knots = Annotated[int, Field(ge=1, le=1 << 24)]
"""Knots of a table, which are made before its tensor is read."""

Bits = Annotated[int, Field(ge=1, le=32)]
"""Bits of a code; 32 is float."""


class Weight(Section):
    """A weight that is stored as codes, of ``packed`` bits each, and multipliers of groups."""

    bits: Bits
    qmax: int | None = None
    packed: int | None = None
    group: int | None = None
    shape: list[int]
    steps: int | None = None
    dtype: Annotated[str, AfterValidator(_dtype)]

    @model_validator(mode="after")
    def _fits(self) -> Weight:
        if self.packed is not None and self.packed != stored_bits(self.bits):
            raise ValueError(f"has codes of {self.bits} bits in {self.packed}")
        if self.group is not None and not (
            self.bits in MULTIPLIER_BITS and count_groups(self.shape, self.group)
        ):
            raise ValueError(f"has groups of {self.group} of {self.bits} bits")
        return self


class Batch(Section):
    """Where samples lie in an activation."""

    axis: int | None
    interleaved: bool


class Activation(Section):
    """A quantizer of activations."""

    bits: Bits
    qmin: int
    qmax: int
    zero_point: int
    scale: str
    offset: float | None = None
    batch: Batch | None = None
    knots: Knots | None = None
    first: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Activation:
        if not self.qmin <= self.qmax < self.qmin + 2**self.bits:
            raise ValueError(f"has codes {self.qmin} to {self.qmax} in {self.bits} bits")
        return self


class Layer(Section):
    """A quantized layer."""

    type: str
    weight: Weight | None = None
    input: Activation | None = None


class Gain(Section):
    """A gain of the output over time, as 0.1 wrote it."""

    knots: Knots
    channels: int | None = None


class Correction(Section):
    """A correction of the output over time; ``bias`` is the number of channels that it shifts."""

    knots: Knots
    channels: int | None = None
    bias: int | None = None
    axis: Literal[1, -1] = 1


class Trial(Section):
    """A remedy that was tried on the whole model."""

    name: str
    kept: bool
    before: Gap
    after: Gap
    what: str


class Protected(Section):
    """An input with more bits than the recipe has for it."""

    path: str
    bits: Bits
    saved: Gap
    cost: Gap


class Remedies(Section):
    """What calibration did beside scales."""

    basis: str
    trials: list[Trial] = Field(default_factory=list)
    protected: list[Protected] = Field(default_factory=list)
    layers: dict[str, list[str]] = Field(default_factory=dict)
    macs: dict[str, int] = Field(default_factory=dict)
    size: float
    time: float


class Index(Document):
    """``tdquant.json``: what ``describe`` gave, how to build the float model, and the tensors."""

    FORMAT: ClassVar[str] = FORMAT
    VERSION: ClassVar[int] = VERSION

    model: dict[str, Any] | None
    timestep: str
    coverage: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    recipe: dict[str, Any] | None = None
    structures: list[dict[str, Any]] = Field(default_factory=list)
    layers: dict[str, Layer]
    attention: dict[str, dict[str, Activation]]
    history: list[dict[str, Any]] = Field(default_factory=list)
    gain: Gain | None = None
    correction: Correction | None = None
    fused: bool = False
    remedies: Remedies | None = None
    aliases: dict[str, str] = Field(default_factory=dict)
    tensors: list[str] | None = None
    digest: str | None = None


def read_index(folder: Path) -> dict[str, Any]:
    """Reads the index of a model that ``tdq.save`` or diffusers' ``save_pretrained`` saved.

    Raises:
        StorageError: It is missing, damaged, foreign or of a newer format; all mistakes are
            listed.
    """
    recover(folder)
    file, index = folder / INDEX, None
    if not exists(file):
        file, index = folder / CONFIG, read_config(folder)
        if index is None:
            parts = ", ".join(str(part) for part in quantized_parts(folder))
            raise StorageError(
                f"no {INDEX} here",
                where=str(folder),
                why="it is a whole pipeline"
                if parts
                else "it is not a folder that tdq.save wrote",
                fix=f"one of its models: {parts}" if parts else "check the path",
            )
    else:
        index = read_json(file, "the index", _FIX)
    Index.from_dict(index, "the index", str(file), _FIX)
    return dict(index)


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, LazyTensor]]:
    """Opens all tensors of a saved model; each is read when it is loaded.

    Raises:
        StorageError: A file is missing or cut.
    """
    files = [folder / TENSORS] if exists(folder / INDEX) else weight_files(folder)
    if not files:
        raise StorageError("no weights here", where=str(folder))
    found: dict[str, LazyTensor] = {}
    with contextlib.ExitStack() as stack:
        for file in files:
            if not exists(file):
                raise StorageError(f"no {file.name} here", where=str(folder))
            open_file = open_safetensors if file.suffix == SUFFIX else open_checkpoint
            found |= stack.enter_context(open_file(file))
        yield found
