"""Denoisers of the studies that are neither tdquant's nor diffusers' as they stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from tdquant.diffusion.embedding import sinusoidal
from tdquant.models.build import from_description


class FilmBlock(nn.Module):
    """Two linear layers beside a shortcut, behind a norm that the time features scale and shift:
    ``h + B silu(A((1 + g) norm(h) + b))``, with ``g`` and ``b`` linear in the features.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(features, 2 * width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        nn.init.zeros_(self.contract.weight)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        gain, shift = self.film(time).chunk(2, dim=-1)
        inner = self.expand((1 + gain) * self.norm(h) + shift)
        return h + self.contract(nn.functional.silu(inner))


class ScoreMLP(nn.Module):
    """A residual network of linear layers that denoises at any noise level.

        D(x, s) = c_skip x + c_out F(c_in x, ln(s) / 4)

    with ``c_in = (s^2 + d^2)^-1/2``, ``c_skip = d^2 c_in^2`` and ``c_out = s d c_in`` for data of
    standard deviation ``d`` (Karras et al., Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, table 1).

    Arguments:
        shape: Shape of one sample; the network sees it flattened.
        width: Units of a layer.
        blocks: Number of residual blocks.
        features: Time features.
        spread: Standard deviation d of the data.
    """

    def __init__(
        self, shape: Sequence[int], width: int, blocks: int, features: int, spread: float
    ) -> None:
        super().__init__()
        self.config = {
            "shape": list(shape), "width": width, "blocks": blocks, "features": features,
            "spread": spread,
        }  # fmt: skip
        self.features, self.spread = features, spread
        size = math.prod(shape)
        self.time = nn.Sequential(nn.Linear(features, features), nn.SiLU())
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(FilmBlock(width, features) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, size)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Estimates the clean samples ``(B, *shape)``; ``timestep`` is the noise level ``s``,
        ``()`` or ``(B,)``.
        """
        sigma = timestep.expand(len(x)).to(x.dtype)
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        c_in = (level.square() + self.spread**2).rsqrt()
        # Sinusoids are spread for times up to 1000.
        time = self.time(sinusoidal(250 * sigma.log(), self.features).to(x.dtype))
        h = self.enter((c_in * x).flatten(1))
        for block in self.blocks:
            h = block(h, time)
        inner = self.leave(nn.functional.silu(self.norm(h))).view_as(x)
        return (self.spread * c_in).square() * x + level * self.spread * c_in * inner


class FunnelMLP(nn.Module):
    """Linear layers that narrow and widen again; what was narrowed is concatenated on the way up,
    and the time features are added before each GELU.

    Arguments:
        shape: Shape of one sample; the network sees it flattened.
        widths: Units on the way down; those on the way up mirror them.
        features: Time features.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int], features: int) -> None:
        super().__init__()
        self.config = {"shape": list(shape), "widths": list(widths), "features": features}
        self.features = features
        size = math.prod(shape)
        self.time = nn.Sequential(nn.Linear(features, features), nn.GELU())
        down = list(zip([size, *widths], widths, strict=False))
        up = [(2 * wide, narrow) for narrow, wide in reversed(down)]
        self.down = nn.ModuleList(nn.Linear(i, o) for i, o in down)
        self.down_time = nn.ModuleList(nn.Linear(features, o) for _, o in down)
        self.middle = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(nn.Linear(i, o) for i, o in up[:-1])
        self.up_time = nn.ModuleList(nn.Linear(features, o) for _, o in up[:-1])
        self.leave = nn.Linear(2 * widths[0] + size, size)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Maps noisy samples ``(B, *shape)`` and timesteps ``()`` or ``(B,)`` to the prediction
        ``(B, *shape)``.
        """
        gelu = nn.functional.gelu
        time = self.time(sinusoidal(timestep.expand(len(x)), self.features).to(x.dtype))
        h = flat = x.flatten(1)
        kept = []
        for layer, about in zip(self.down, self.down_time, strict=True):
            h = gelu(layer(h) + about(time))
            kept.append(h)
        h = gelu(self.middle(h))
        for layer, about in zip(self.up, self.up_time, strict=True):
            h = gelu(layer(torch.cat([h, kept.pop()], dim=-1)) + about(time))
        return self.leave(torch.cat([h, kept.pop(), flat], dim=-1)).view_as(x)


class UnconditionalDiT(nn.Module):
    """diffusers' ``DiTTransformer2DModel`` without classes, called as ``model(x, timestep)``.

    Arguments:
        dit: Keyword arguments of it.
    """

    def __init__(self, **dit: Any) -> None:
        super().__init__()
        self.config = dit
        self.dit = DiTTransformer2DModel(**dit, num_embeds_ada_norm=1, norm_num_groups=1)
        for block in self.dit.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Maps noisy images ``(B, C, H, W)`` and timesteps ``()`` or ``(B,)`` to the prediction
        ``(B, C, H, W)``.
        """
        nothing = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.dit(x, timestep.expand(len(x)), nothing, return_dict=False)[0]


OWN = {cls.__name__: cls for cls in (ScoreMLP, FunnelMLP, UnconditionalDiT)}


def build(description: dict[str, Any], where: str = "") -> nn.Module:
    """A fresh network from its description: source, class and config."""
    if description["source"] == "studies":
        return OWN[description["class"]](**description["config"])
    return from_description(description, where)
