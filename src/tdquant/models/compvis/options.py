"""Options of the latent-diffusion UNet: the heads of its attention, and what contradicts what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tdquant.errors import ModelError, raise_collected
from tdquant.models.compvis.attention import AttentionBlock, SpatialTransformer
from tdquant.models.compvis.blocks import CONVOLUTIONS, GROUPS

Options = Mapping[str, Any]
"""All constructor arguments of the UNet by name."""


def split_heads(options: Options, channels: int, up: bool = False) -> tuple[int, int]:
    """Number and width of the heads of attention over ``channels``, on the way ``up`` or not.

    Transformers with ``legacy`` take only the number of heads from ``num_head_channels``.
    """
    count, width = options["num_heads"], options["num_head_channels"]
    heads = count if width == -1 else channels // width
    if width == -1:
        width = channels // heads
    if _depth(options):
        return heads, channels // heads if options["legacy"] else width
    if options["legacy"] and options["num_head_channels"] == -1:
        heads = options["num_heads_upsample"] if up else count
        heads = count if heads == -1 else heads
        return heads, channels // heads
    return channels // width, width


def make_attention(options: Options, channels: int, up: bool = False) -> nn.Module:
    """The attention over ``channels``: transformer blocks, or a plain block."""
    heads, width = split_heads(options, channels, up)
    if _depth(options):
        return SpatialTransformer(channels, heads, width, _depth(options), options["context_dim"])
    return AttentionBlock(channels, heads, heads_first=not options["use_new_attention_order"])


def check_options(options: Options) -> None:
    """Checks constructor arguments of the UNet against each other.

    Raises:
        ModelError: Some contradict each other or are out of range; all are listed.
    """
    mistakes = [*_mistakes(options), *_attention_mistakes(options)]
    raise_collected(ModelError, mistakes, "the UNet's options", where="UNetModel")


def _depth(options: Options) -> int:
    """Transformer blocks in a place, 0 for plain attention."""
    return options["transformer_depth"] if options["use_spatial_transformer"] else 0


def _mistakes(options: Options) -> Iterator[str]:
    base, multiples = options["model_channels"], options["channel_mult"]
    size = options["image_size"]
    sides = size if isinstance(size, (list, tuple)) else [size]
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        yield f"image_size={size!r}: a positive whole number, or a pair"
    if options["dims"] not in CONVOLUTIONS:
        yield f"dims={options['dims']}: one of {sorted(CONVOLUTIONS)}"
    if not multiples or any(m < 1 for m in multiples):
        yield f"channel_mult={multiples}: positive, and at least one"
    elif multiples[0] != 1:
        yield f"channel_mult={multiples}: the first must be 1, as the output layer has it"
    if base < 1 or base % GROUPS:
        yield f"model_channels={base}: a multiple of {GROUPS}, which group norms need"
    if options["num_res_blocks"] < 1:
        yield f"num_res_blocks={options['num_res_blocks']}: at least 1"


def _attention_mistakes(options: Options) -> Iterator[str]:
    spatial, context = options["use_spatial_transformer"], options["context_dim"]
    if spatial and context is None:
        yield "use_spatial_transformer without context_dim"
    if context is not None and not spatial:
        yield f"context_dim={context} without use_spatial_transformer"
    if spatial and options["dims"] != 2:
        yield f"use_spatial_transformer with dims={options['dims']}"
    names = ("num_heads", "num_head_channels", "num_heads_upsample")
    bad = [name for name in names if options[name] != -1 and options[name] < 1]
    yield from (f"{name}={options[name]}: positive, or -1" for name in bad)
    if options["num_heads"] == -1 and options["num_head_channels"] == -1:
        yield "num_heads and num_head_channels are both -1: one must be given"
    elif not bad:
        yield from dict.fromkeys(_indivisible(options))


def _indivisible(options: Options) -> Iterator[str]:
    """Levels whose channels cannot be divided among their heads."""
    base, multiples = options["model_channels"], list(options["channel_mult"])
    places = {
        (multiple * base, up)
        for level, multiple in enumerate(multiples)
        for up in (False, True)
        if 2**level in options["attention_resolutions"]
    } | {(multiple * base, False) for multiple in multiples[-1:]}
    for channels, up in sorted(places):
        if max(options["num_head_channels"], options["num_heads"]) > channels:
            yield f"more or wider heads than the {channels} channels of a level"
            continue
        heads, width = split_heads(options, channels, up)
        if heads * width != channels and not _depth(options):
            yield f"{channels} channels of a level are not {heads} heads of {width}"
