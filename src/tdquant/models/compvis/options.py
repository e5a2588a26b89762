"""Options of the latent-diffusion UNet: what contradicts what, and how wide heads are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tdquant.errors import ModelError
from tdquant.models.compvis.attention import AttentionBlock, SpatialTransformer
from tdquant.models.compvis.blocks import CONVOLUTIONS, GROUPS


@dataclass(frozen=True)
class Attention:
    """Makes the attention of a place from its width alone: ``attend(channels, up=False)``.

    Arguments:
        heads: Heads, or -1 where ``width`` says it.
        width: Width of a head, or -1 where ``heads`` says it.
        heads_up: Heads on the way up.
        legacy: The older rule, by which transformers ignore ``width`` but for the number of heads.
        heads_first: Order of the channels of q, k and v.
        depth: Transformer blocks in a place; 0 for plain attention.
        context_dim: Width of the context of transformer blocks.
    """

    heads: int
    width: int
    heads_up: int
    legacy: bool
    heads_first: bool
    depth: int
    context_dim: int | None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Attention:
        """The attention that constructor arguments of the UNet describe."""
        heads, up = options["num_heads"], options["num_heads_upsample"]
        return cls(
            heads,
            options["num_head_channels"],
            heads if up == -1 else up,
            options["legacy"],
            not options["use_new_attention_order"],
            options["transformer_depth"] if options["use_spatial_transformer"] else 0,
            options["context_dim"],
        )

    def split(self, channels: int, up: bool = False) -> tuple[int, int]:
        """Number and width of the heads of a place ``channels`` wide."""
        heads = self.heads if self.width == -1 else channels // self.width
        width = channels // heads if self.width == -1 else self.width
        if self.depth:
            return heads, channels // heads if self.legacy else width
        if self.legacy and self.width == -1:
            heads = self.heads_up if up else self.heads
            return heads, channels // heads
        return channels // width, width

    def __call__(self, channels: int, up: bool = False) -> nn.Module:
        heads, width = self.split(channels, up)
        if self.depth:
            return SpatialTransformer(channels, heads, width, self.depth, self.context_dim)
        return AttentionBlock(channels, heads, self.heads_first)


def check_options(options: Mapping[str, Any]) -> None:
    """Checks constructor arguments of the UNet against each other.

    Raises:
        ModelError: Some cannot be; all are listed.
    """
    wrong = [*_mistakes(options), *_attention_mistakes(options)]
    if wrong:
        raise ModelError(
            f"{len(wrong)} mistake{'s' * (len(wrong) > 1)} in the UNet's options:\n  - "
            + "\n  - ".join(wrong),
            where="UNetModel",
        )


def _mistakes(options: Mapping[str, Any]) -> list[str]:
    wrong = []
    base, multiples = options["model_channels"], options["channel_mult"]
    size = options["image_size"]
    sides = size if isinstance(size, (list, tuple)) else [size]
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        return [f"image_size={size!r}: a positive whole number, or a pair"]
    if options["dims"] not in CONVOLUTIONS:
        wrong.append(f"dims={options['dims']}: one of {sorted(CONVOLUTIONS)}")
    if not multiples or any(m < 1 for m in multiples):
        wrong.append(f"channel_mult={multiples}: positive, and at least one")
    elif multiples[0] != 1:
        wrong.append(f"channel_mult={multiples}: the first must be 1, as the output layer has it")
    if base < 1 or base % GROUPS:
        wrong.append(f"model_channels={base}: a multiple of {GROUPS}, which group norms need")
    if options["num_res_blocks"] < 1:
        wrong.append(f"num_res_blocks={options['num_res_blocks']}: at least 1")
    return wrong


def _attention_mistakes(options: Mapping[str, Any]) -> list[str]:
    wrong = []
    spatial, context = options["use_spatial_transformer"], options["context_dim"]
    if spatial and context is None:
        wrong.append("use_spatial_transformer without context_dim")
    if context is not None and not spatial:
        wrong.append(f"context_dim={context} without use_spatial_transformer")
    if spatial and options["dims"] != 2:
        wrong.append(f"use_spatial_transformer with dims={options['dims']}")
    names = ("num_heads", "num_head_channels", "num_heads_upsample")
    bad = [name for name in names if options[name] != -1 and options[name] < 1]
    wrong += [f"{name}={options[name]}: positive, or -1" for name in bad]
    if options["num_heads"] == -1 and options["num_head_channels"] == -1:
        wrong.append("num_heads and num_head_channels are both -1: one must be given")
    elif not bad:
        wrong += _indivisible(options)
    return wrong


def _indivisible(options: Mapping[str, Any]) -> list[str]:
    """Levels whose width does not divide among their heads."""
    attend, multiples = Attention.from_options(options), list(options["channel_mult"])
    places = {
        (multiple * options["model_channels"], up)
        for level, multiple in enumerate(multiples)
        for up in (False, True)
        if 2**level in options["attention_resolutions"]
    }
    if multiples:
        places.add((multiples[-1] * options["model_channels"], False))
    wrong = []
    for channels, up in sorted(places):
        if attend.width > channels or attend.heads > channels:
            wrong.append(f"more or wider heads than the {channels} channels of a level")
            continue
        heads, width = attend.split(channels, up)
        if heads * width != channels and not attend.depth:
            wrong.append(f"{channels} channels of a level are not {heads} heads of {width}")
    return list(dict.fromkeys(wrong))
