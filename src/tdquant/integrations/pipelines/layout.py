"""The layout of a folder that optimum-intel reads: names of files, inputs and outputs.

    model_index.json                      of diffusers, as it is
    unet/ or transformer/                 openvino_model.xml, .bin, config.json
    text_encoder/, _2, _3                 the same: input_ids -> last_hidden_state, ...
    vae_encoder/, vae_decoder/            the same: sample -> latent_parameters, latent_sample ->
                                          sample
    scheduler/, tokenizer/, ...           of diffusers and transformers, as they are

Its wrappers call a denoiser with flat names: ``text_embeds``, where diffusers has
``added_cond_kwargs["text_embeds"]``; numbers and tuples of numbers are tensors. UNets get one
timestep for the whole batch, transformers one for each sample.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.lowering.nests import leaves

GRAPH = "openvino_model.xml"
CONFIG = "config.json"
INDEX = "model_index.json"

EXACT_RUN = {"INFERENCE_PRECISION_HINT": "f32"}
"""Properties that optimum-intel compiles the graphs with by default: it takes entries of
``model_index.json`` for arguments of its pipeline. Otherwise processors with bfloat16 compute in
that.
"""

SEQUENCES = {
    "hidden_states": 1,
    "encoder_hidden_states": 1,
    "encoder_attention_mask": 1,
    "img_ids": 0,
    "txt_ids": 0,
}
"""Inputs of denoisers that are sequences of tokens -> the axis of the tokens, which is free."""

_IMAGES = ("Pipeline", "Img2ImgPipeline", "InpaintPipeline")
READ_BY_OPTIMUM = frozenset(
    [f"StableDiffusion{kind}" for kind in _IMAGES]
    + [f"StableDiffusionXL{kind}" for kind in _IMAGES]
    + [f"StableDiffusion3{kind}" for kind in _IMAGES]
    + [f"LatentConsistencyModel{kind}" for kind in _IMAGES[:2]]
    + [f"Flux{kind}" for kind in _IMAGES]
    + ["LTXPipeline"]
)
"""Pipelines of diffusers that are written in this layout."""


def flat_name(name: str) -> str:
    """Name of an input in the layout: the last part of ``added_cond_kwargs.text_embeds``."""
    return name.rpartition(".")[2]


def as_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a denoiser with numbers and tuples of numbers as tensors, without
    ``return_dict`` and without those that are None or empty.
    """
    found = {}
    for name, value in arguments.items():
        empty = value is None or (isinstance(value, Mapping) and not value)
        if empty or name == "return_dict":
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if all(map(_is_number, numbers)):
            fractions = any(isinstance(number, float) for number in numbers)
            value = torch.as_tensor(value, dtype=torch.float32 if fractions else None)
        found[name] = value
    return found


def flattened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a denoiser under the names of the layout."""
    return {
        flat_name(name): leaf
        for key, value in as_tensors(arguments).items()
        for name, leaf in leaves(key, value)
    }


def _is_number(value: Any) -> bool:
    # A scale of the rotary embedding may be a number in a tensor.
    scalar = isinstance(value, Tensor) and value.ndim == 0
    return scalar or (isinstance(value, (int, float)) and not isinstance(value, bool))


def name_input(port: Any, name: str) -> None:
    """Names an input of an OpenVINO graph."""
    port.get_tensor().set_names({name})
    port.get_node().set_friendly_name(name)


@contextlib.contextmanager
def part_folder(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """The path for the graph of a part, in a new folder; its configuration is written
    afterwards.
    """
    folder.mkdir()
    yield folder / GRAPH
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")
