r"""Attention of the latent-diffusion UNet: over positions, and over a context.

    a = softmax((q d^-1/4)(k d^-1/4)^T) v        AttentionBlock
    a = softmax(q k^T d^-1/2) v                  CrossAttention

The order of the products is that of published models, since a quantized layer further down may
round the other way when it is not.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022
    (https://arxiv.org/abs/2112.10752), section 3.3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.errors import ModelError
from tdquant.models.compvis.blocks import GroupNorm32, zeroed


class AttentionBlock(nn.Module):
    """Self-attention over all positions with a residual connection, ``(B, C, *) -> (B, C, *)``.

    Arguments:
        channels: Width C.
        heads: Number of heads, a divisor of C.
        heads_first: Whether the 3C channels of q, k and v are heads of (q, k, v), as in most
            checkpoints, or (q, k, v) of heads.
    """

    def __init__(self, channels: int, heads: int, heads_first: bool = True) -> None:
        super().__init__()
        self.heads, self.heads_first = heads, heads_first
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        h = self.proj_out(self._attend(self.qkv(self.norm(flat))))
        return (flat + h).reshape(x.shape)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attends with q, k, v in one tensor ``(B, 3C, N)``; gives ``(B, C, N)``."""
        batch, width, length = qkv.shape
        each = width // (3 * self.heads)
        if self.heads_first:
            q, k, v = qkv.reshape(batch * self.heads, 3 * each, length).split(each, dim=1)
        else:
            q, k, v = (
                part.reshape(batch * self.heads, each, length) for part in qkv.chunk(3, dim=1)
            )
        scale = 1 / math.sqrt(math.sqrt(each))
        scores = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        p = torch.softmax(scores.float(), dim=-1).to(scores.dtype)
        return torch.einsum("bts,bcs->bct", p, v).reshape(batch, -1, length)


class CrossAttention(nn.Module):
    """Multi-head attention of ``(B, N, dim)`` to ``(B, M, context_dim)``, or to itself."""

    def __init__(self, dim: int, context_dim: int | None, heads: int, each: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, each**-0.5
        self.context_dim = dim if context_dim is None else context_dim
        self.to_q = nn.Linear(dim, heads * each, bias=False)
        self.to_k = nn.Linear(self.context_dim, heads * each, bias=False)
        self.to_v = nn.Linear(self.context_dim, heads * each, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * each, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        if context.shape[-1] != self.context_dim:
            raise ModelError(
                f"a context of width {context.shape[-1]}, not {self.context_dim}",
                where="UNetModel.forward",
                fix=f"pass context= of shape (B, M, {self.context_dim})",
            )
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        scores = torch.einsum("bid,bjd->bij", q, k) * self.scale
        out = torch.einsum("bij,bjd->bid", scores.softmax(dim=-1), v)
        return self.to_out(out.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2))


class GatedGELU(nn.Module):
    """``a gelu(b)`` with ``[a, b]`` a projection of the input."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide as its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGELU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and a feed-forward layer, each residual."""

    def __init__(self, dim: int, context_dim: int | None, heads: int, each: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, each)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, each)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of an image, ``(B, C, H, W) -> (B, C, H, W)``.

    Arguments:
        channels: Width C.
        heads: Number of heads.
        each: Width of a head.
        depth: Number of blocks.
        context_dim: Width of the context.
    """

    def __init__(
        self, channels: int, heads: int, each: int, depth: int, context_dim: int | None
    ) -> None:
        super().__init__()
        inner = heads * each
        self.norm = GroupNorm32(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, context_dim, heads, each) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.transpose(1, 2).reshape(h.shape)) + x
