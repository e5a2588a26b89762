"""Text encoders and autoencoders as OpenVINO graphs, in float32 or with 8-bit weights.

optimum-intel's own exporter needs other versions of diffusers and transformers than those that
read a quantized pipeline, so the graphs are traced here, with the names of its layout.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ExportError
from tdquant.integrations.pipelines.layout import name_input, part_folder
from tdquant.lowering.openvino.graph import EXACT, write_errors
from tdquant.lowering.openvino.tracing import trace
from tdquant.support.optional import require

TOKENS = 8
"""Tokens of the text that an encoder is traced with; their number is free in the graph."""

LATENTS = 8
"""Height and width of the latents that an autoencoder of images is traced with."""


class _TextEncoder(nn.Module):
    """``input_ids -> (main output, others, hidden states)``, all of them ``(B, ...)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def named(self, input_ids: Tensor) -> dict[str, Tensor]:
        """The outputs by name, the one that pipelines read by position first."""
        out = self.model(input_ids, output_hidden_states=True, return_dict=True)
        names = ("text_embeds", "last_hidden_state", "pooler_output")
        found = {name: out[name] for name in names if out.get(name) is not None}
        states = enumerate(out.hidden_states)
        return found | {f"hidden_states.{i}": state for i, state in states}

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(input_ids).values())


class _Decoder(nn.Module):
    """``latent_sample -> sample``; decoders that see time take ``(latent_sample, timestep)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        more = () if timestep is None else (timestep,)
        return self.vae.decode(latent_sample, *more, return_dict=False)[0]


class _Encoder(nn.Module):
    """``sample -> latent_parameters``: mean and log-variance, ``(B, 2 C, ...)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample).latent_dist.parameters


def write_text_encoder(model: Any, folder: Path, weights_8bit: bool = False) -> None:
    """Writes a text encoder of transformers: its graph and its configuration.

    Arguments:
        model: CLIP with or without a projection, or T5.
        folder: Where to.
        weights_8bit: Store weights with 8 bits, one scale for each output channel.

    Raises:
        ExportError: It cannot be traced.
        MissingDependencyError: ``weights_8bit`` without NNCF.
    """
    module = _TextEncoder(_in_float32(model))
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) % model.config.vocab_size
    with torch.no_grad():
        outputs = list(module.named(ids))
    graph = _traced(module, {"input_ids": ids}, outputs, [0, 1])
    config = json.loads(model.config.to_json_string(use_diff=False))
    _write(graph, folder, config, weights_8bit, model.dtype)


def write_autoencoder(vae: Any, folder: Path, weights_8bit: bool = False) -> None:
    """Writes the two graphs of an autoencoder to ``vae_decoder`` and ``vae_encoder``.

    Arguments:
        vae: A variational autoencoder of diffusers, for images or for videos.
        folder: Folder of the pipeline.
        weights_8bit: As for ``write_text_encoder``.

    Raises:
        ExportError: It cannot be traced.
        MissingDependencyError: ``weights_8bit`` without NNCF.
    """
    model = _in_float32(vae)
    video = hasattr(vae, "temporal_compression_ratio")
    # Videos are compressed several times as much: a few of their latents make a whole video.
    size = (2,) * 3 if video else (LATENTS,) * 2
    latents = torch.zeros(2, vae.config.latent_channels, *size, dtype=torch.float32)
    inputs = {"latent_sample": latents}
    if getattr(vae.config, "timestep_conditioning", False):
        inputs["timestep"] = torch.zeros(2, dtype=torch.float32)
    decoder, encoder = _Decoder(model), _Encoder(model)
    with torch.no_grad():
        pictures = decoder(*inputs.values())
    free = [0, *range(2, latents.ndim)]
    config = json.loads(vae.to_json_string()) | _facts(vae)
    decoded = _traced(decoder, inputs, ["sample"], free)
    _write(decoded, folder / "vae_decoder", config, weights_8bit, vae.dtype)
    encoded = _traced(encoder, {"sample": pictures}, ["latent_parameters"], free)
    _write(encoded, folder / "vae_encoder", config, weights_8bit, vae.dtype)


def _facts(vae: Any) -> dict[str, Any]:
    """Attributes of an autoencoder for videos that pipelines read beside its configuration."""
    ratios = ("spatial_compression_ratio", "temporal_compression_ratio")
    found: dict[str, Any] = {n: int(getattr(vae, n)) for n in ratios if hasattr(vae, n)}
    statistics = dict(vae.named_buffers(recurse=False))
    for name in {"latents_mean", "latents_std"} & set(statistics):
        found[f"{name}_data"] = statistics[name].tolist()
    return found


def _in_float32(model: Any) -> Any:
    """The model for inference in float32: itself if it is so already, else a copy."""
    if model.dtype == torch.float32 and not model.training:
        return model
    return copy.deepcopy(model).float().cpu().eval()


def _traced(
    module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], free: Sequence[int]
) -> Any:
    """The graph of a module. The axes ``free`` of its first input, and the batch of others, are
    free.
    """
    try:
        graph = trace(module, list(inputs.values()))
        shapes = {}
        for i, (port, (name, tensor)) in enumerate(zip(graph.inputs, inputs.items(), strict=True)):
            name_input(port, name)
            axes = free if i == 0 else [0]
            shapes[port] = [-1 if axis in axes else n for axis, n in enumerate(tensor.shape)]
        graph.reshape(shapes)
    except Exception as error:
        raise ExportError(
            "OpenVINO cannot trace a part of the pipeline",
            where=type(getattr(module, "model", None) or module.vae).__name__,
            why=str(error).strip().splitlines()[-1],
        ) from error
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    return graph


def _write(
    graph: Any, folder: Path, config: dict[str, Any], weights_8bit: bool, dtype: torch.dtype
) -> None:
    ov = require("openvino", "openvino")
    if weights_8bit:
        nncf = require("nncf", "compress")
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    for name, value in EXACT.items():
        graph.set_rt_info(value, ["runtime_options", name])
    with part_folder(folder, config) as file, write_errors(file):
        # Weights that were float16 are so in the file: nothing is lost, and it is half the size.
        ov.save_model(graph, file, compress_to_fp16=dtype == torch.float16)
