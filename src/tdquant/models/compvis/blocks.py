r"""Residual blocks of the latent-diffusion UNet, and its changes of resolution.

    h = conv(R(silu(norm(x))))
    h = norm(h) (1 + scale(e)) + shift(e)    or    norm(h + shift(e))
    y = skip(R(x)) + conv(dropout(silu(h)))

with e the embedded timestep and R nothing, a doubling or a halving of the resolution. Names of
submodules are those of published checkpoints.

References:
    Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021
    (https://arxiv.org/abs/2105.05233), section 3.
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022
    (https://arxiv.org/abs/2112.10752).
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
"""Groups of every group norm: widths are multiples of it."""

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
POOLS: dict[int, type[nn.AvgPool1d] | type[nn.AvgPool2d]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


class GroupNorm32(nn.GroupNorm):
    """Group norm over 32 groups, computed in float32, in the dtype of its input."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(input.float(), GROUPS, weight, bias, self.eps).to(input.dtype)


def zeroed(layer: nn.Module) -> nn.Module:
    """Zeroes the parameters of a layer, so that a residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def upsample(channels: int, learned: bool, dims: int) -> nn.Sequential:
    """Doubles the resolution by repetition, then convolves if ``learned``."""
    layers: dict[str, nn.Module] = {"repeat": nn.Upsample(scale_factor=2, mode="nearest")}
    if learned:
        layers["conv"] = CONVOLUTIONS[dims](channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(layers))


def downsample(channels: int, learned: bool, dims: int) -> nn.Sequential:
    """Halves the resolution, by a strided convolution if ``learned``, else by averaging."""
    layer: nn.Module = POOLS[dims](2, 2)
    if learned:
        layer = CONVOLUTIONS[dims](channels, channels, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(op=layer))


RESAMPLE = {"up": upsample, "down": downsample}


class ResBlock(nn.Module):
    """A residual block with a time embedding, ``(B, C, *), (B, E) -> (B, C', *')``.

    Arguments:
        channels: Width C of the input.
        out_channels: Width C' of the output.
        emb_channels: Width E of the time embedding.
        dropout: Rate before the last convolution.
        scale_shift: Whether the embedding scales and shifts after the norm, or adds before it.
        dims: Spatial dimensions, 1 or 2.
        resample: ``"up"``, ``"down"`` or None.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        scale_shift: bool,
        dims: int,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            convolution(channels, out_channels, 3, padding=1),
        )
        self.h_upd, self.x_upd = (
            RESAMPLE[resample](channels, False, dims) if resample else nn.Identity()
            for _ in range(2)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(convolution(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            self.skip_connection = convolution(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, convolve = self.in_layers
        h = convolve(self.h_upd(silu(norm(x))))
        e = self.emb_layers(emb).to(h.dtype)
        e = e.reshape(*e.shape, *[1] * (h.ndim - 2))
        norm, silu, dropout, convolve = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        return self.skip_connection(self.x_upd(x)) + convolve(dropout(silu(h)))
