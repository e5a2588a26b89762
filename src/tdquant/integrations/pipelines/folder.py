"""``export_pipeline``: a quantized diffusers pipeline as a folder of OpenVINO graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.calls.from_pipeline import denoisers
from tdquant.clock import is_quantized
from tdquant.errors import ModelError
from tdquant.files.places import check_new_folder, check_writable
from tdquant.files.writing import new_folder
from tdquant.integrations.pipelines.denoiser import write_denoiser
from tdquant.integrations.pipelines.example import first_calls
from tdquant.integrations.pipelines.layout import EXACT_RUN, INDEX, READ_BY_OPTIMUM
from tdquant.integrations.pipelines.parts import write_autoencoder, write_text_encoder
from tdquant.lowering.lowered import require_frozen
from tdquant.support.optional import require
from tdquant.support.progress import track


def export_pipeline(
    pipe: Any,
    out: str | os.PathLike[str],
    *,
    example: Mapping[str, Any] | None = None,
    weights_8bit: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a quantized pipeline as a folder of OpenVINO graphs.

    The denoisers are exported as by ``tdq.export``, with scale tables inside: the folder serves
    every scheduler and number of steps. Text encoders and autoencoder are float32 graphs, or have
    8-bit weights.

    Stable Diffusion 1, 2, XL and 3, latent consistency models, Flux and LTX are written in the
    layout of optimum-intel, whose ``OVDiffusionPipeline.from_pretrained(out)`` reads the folder on
    machines without tdquant. Of other pipelines the denoiser alone becomes a graph, and the rest
    is saved as diffusers saves it. ``tdq.open_pipeline(out)`` opens both kinds.

    Arguments:
        pipe: A diffusers pipeline with frozen denoisers, or the folder of one, as
            ``tdquant quantize`` and ``save_pretrained`` write them.
        out: Folder to write, missing or empty. A failure leaves it as it was.
        example: Arguments of one run of the pipeline, which is stopped at the first call of a
            denoiser. None passes a prompt. Height and width are free in the graphs where the
            denoiser allows it.
        weights_8bit: Store weights of text encoders and autoencoder with 8 bits, by NNCF.
        progress: Draw a bar.

    Returns:
        The folder.

    Raises:
        ModelError: No pipeline, or a denoiser of it is not quantized.
        FreezeError: A denoiser is quantized but not frozen.
        ExportError: The pipeline cannot be run with the example, or a part cannot be traced.
        StorageError: ``out`` holds something, or cannot be written.
        MissingDependencyError: OpenVINO, diffusers or, for 8-bit weights, NNCF is not installed.
    """
    for module, extra in (("openvino", "openvino"), ("diffusers", "pipelines")):
        require(module, extra)
    if weights_8bit:
        require("nncf", "compress")
    target = Path(out)
    check_new_folder(target)  # before the work, and after it again
    check_writable(target)
    opened = load_pipeline(pipe) if isinstance(pipe, (str, os.PathLike)) else pipe
    models = denoisers(opened)
    _check_frozen(opened, models)
    calls = first_calls(opened, example)
    known = type(opened).__name__ in READ_BY_OPTIMUM
    with new_folder(target) as fresh:
        _write_index(opened, fresh / INDEX, known)
        parts = {n: p for n, p in opened.components.items() if p is not None}
        for name in track(list(parts), "exporting", len(parts), progress):
            part, folder = parts[name], fresh / name
            if name in models:
                write_denoiser(part, calls[name], folder, flat=known)
            elif known and name == "vae":
                write_autoencoder(part, fresh, weights_8bit)
            elif known and name.startswith("text_encoder"):
                write_text_encoder(part, folder, weights_8bit)
            elif hasattr(part, "save_pretrained"):
                part.save_pretrained(folder)
    return target


def _write_index(pipe: Any, file: Path, known: bool) -> None:
    pipe.save_config(file.parent)
    if known:
        index = json.loads(file.read_text()) | {"ov_config": EXACT_RUN}
        file.write_text(json.dumps(index, indent=2) + "\n")


def load_pipeline(source: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Any:
    """A diffusers pipeline from its folder, or by its name on the hub.

    Arguments:
        source: Folder or name.
        dtype: Type to load it in; None takes its own.

    Raises:
        ModelError: There is none, or it is damaged.
        MissingDependencyError: diffusers is not installed.
    """
    pipeline = require("diffusers", "pipelines").DiffusionPipeline
    try:
        return pipeline.from_pretrained(source, **({} if dtype is None else {"dtype": dtype}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "no pipeline can be opened",
            where=str(source),
            why=str(error).strip().splitlines()[0],
            fix=f"a folder with {INDEX}, as tdquant quantize or save_pretrained of a pipeline "
            "writes it, or a name on the hub",
        ) from error


def _check_frozen(pipe: Any, models: Mapping[str, nn.Module]) -> None:
    """Raises ModelError or FreezeError for denoisers that cannot be exported."""
    for name, model in models.items():
        if not is_quantized(model):
            raise ModelError(
                f"the denoiser {name} is not quantized",
                where=type(pipe).__name__,
                fix="tdquant quantize --model DIR --out QUANTIZED, then export QUANTIZED",
            )
        require_frozen(model, "exported", "tdq.export_pipeline of frozen denoisers")
