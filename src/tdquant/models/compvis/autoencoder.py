"""First stages of latent-diffusion checkpoints as diffusers' classes, with names both ways.

KL autoencoders become ``AutoencoderKL`` and vector-quantized ones ``VQModel``. The networks are
the same; what differs is what layers are called, that the decoder's levels count from the other
end, and that attention has 1x1 convolutions for linear layers.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022
    (https://arxiv.org/abs/2112.10752), section 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tdquant.errors import ModelError, raise_collected
from tdquant.files.checkpoints import LazyTensor
from tdquant.support.optional import require

_NAMES = (
    (r"^conv_norm_out\.", "norm_out."),
    (r"^mid_block\.resnets\.0\.", "mid.block_1."),
    (r"^mid_block\.resnets\.1\.", "mid.block_2."),
    (r"^mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
"""Patterns in diffusers' names, and what published names have there."""


def build_first_stage(
    kind: str, params: Mapping[str, Any], scale_factor: float | None
) -> nn.Module:
    """Builds a first stage, its weights still to load.

    Arguments:
        kind: Class in the configuration: AutoencoderKL, VQModel or VQModelInterface.
        params: Its ``first_stage_config.params``: ``ddconfig``, ``embed_dim`` and ``n_embed`` are
            read.
        scale_factor: Factor of its latents, for its own configuration; None if it is not known.

    Raises:
        ModelError: Options without a counterpart in diffusers' classes; all are listed.
        MissingDependencyError: diffusers is not installed.
    """
    diffusers = require("diffusers", "diffusers")
    net, embed = params["ddconfig"], int(params["embed_dim"])
    vector = kind != "AutoencoderKL"
    raise_collected(
        ModelError, _mistakes(net, kind), "first_stage_config.params.ddconfig",
        why="diffusers' classes have no counterpart of these options",
    )  # fmt: skip
    multiples, size = list(net.get("ch_mult", (1, 2, 4, 8))), int(net["resolution"])
    attended = [size // 2**i in net["attn_resolutions"] for i in range(len(multiples))]
    options: dict[str, Any] = {
        "in_channels": net["in_channels"],
        "out_channels": net["out_ch"],
        "block_out_channels": [net["ch"] * m for m in multiples],
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attended],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in reversed(attended)],
        "layers_per_block": net["num_res_blocks"],
        "latent_channels": net["z_channels"],
        "sample_size": size,
        "scaling_factor": 1.0 if scale_factor is None else scale_factor,
        "mid_block_add_attention": net.get("attn_type", "vanilla") == "vanilla",
    }
    if vector:
        codes = {"num_vq_embeddings": int(params["n_embed"]), "vq_embed_dim": embed}
        return diffusers.VQModel(**options, **codes).eval()
    vae = diffusers.AutoencoderKL(**options, force_upcast=False)
    if embed != net["z_channels"]:
        # diffusers' class has one width for both; its forward needs no more than these layers.
        vae.quant_conv = nn.Conv2d(2 * net["z_channels"], 2 * embed, 1)
        vae.post_quant_conv = nn.Conv2d(embed, net["z_channels"], 1)
    return vae.eval()


def _mistakes(net: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Finds options of ``ddconfig`` that diffusers' classes cannot follow."""
    attention, double = net.get("attn_type", "vanilla"), bool(net.get("double_z", True))
    if not net.get("resamp_with_conv", True):
        yield "resamp_with_conv=False"
    if net.get("use_linear_attn") or attention not in ("vanilla", "none"):
        yield "linear attention"
    if attention == "none" and net["attn_resolutions"]:
        yield "attn_type='none' with attn_resolutions"
    yield from (f"{name}=True" for name in ("tanh_out", "give_pre_end") if net.get(name))
    if double != (kind == "AutoencoderKL"):
        yield f"double_z={double} in a {kind}"


def first_stage_names(vae: nn.Module) -> dict[str, str]:
    """The published name of every tensor of a first stage, by diffusers' name."""
    levels = len(vae.config.block_out_channels)  # type: ignore[union-attr, arg-type]
    return {name: _published(name, levels) for name in vae.state_dict()}


def from_published(vae: nn.Module, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Renames published tensors to those of ``vae``.

    Missing names are left out and unknown ones kept, so that whoever loads the result sees both.
    """
    names = first_stage_names(vae)
    own = vae.state_dict()
    found = {name: state[published] for name, published in names.items() if published in state}
    for name, tensor in found.items():
        if tensor.ndim == 4 and own[name].ndim == 2:  # a 1x1 convolution as a matrix
            found[name] = tensor.reshape(tensor.shape[0], tensor.shape[1:].numel())
    known = set(names.values())
    return found | {name: tensor for name, tensor in state.items() if name not in known}


def to_published(vae: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``vae`` with published names and shapes."""
    state = vae.state_dict()
    return {
        published: state[name][..., None, None]
        if state[name].ndim == 2 and ".attn" in published
        else state[name]
        for name, published in first_stage_names(vae).items()
    }


def _published(name: str, levels: int) -> str:
    """The published name of diffusers' ``name``."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name  # quant_conv, post_quant_conv, quantize
    for pattern, published in _NAMES:
        rest = re.sub(pattern, published, rest)
    level = re.match(r"(down|up)_blocks\.(\d+)\.", rest)
    if level:
        way, index = level[1], int(level[2])
        index = index if way == "down" else levels - 1 - index
        rest = f"{way}.{index}.{rest[level.end() :]}"
    return f"{side}.{rest}"
