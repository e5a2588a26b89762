r"""The latent-diffusion UNet, whose state dict has the keys of published checkpoints.

    e   = W_2 silu(W_1 emb(t)) [+ class(y)]
    h_i = input_blocks_i(h_{i-1}, e),    h = middle_block(h_n, e)
    h   = output_blocks_i([h, h_{n-i}], e),    out = conv(silu(norm(h)))

Latent diffusion, and pixel diffusion in its configuration format, use it at every size.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022
    (https://arxiv.org/abs/2112.10752).
    Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021
    (https://arxiv.org/abs/2105.05233).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tdquant.clock import clock_of, is_quantized, time_tensor
from tdquant.diffusion.embedding import sinusoidal
from tdquant.errors import ModelError
from tdquant.models.compvis.attention import AttentionBlock, SpatialTransformer
from tdquant.models.compvis.blocks import CONVOLUTIONS, RESAMPLE, GroupNorm32, ResBlock, zeroed
from tdquant.models.compvis.options import check_options, make_attention

Run = Callable[..., Tensor]


class Stage(nn.Sequential):
    """Layers in sequence, each called with what it takes: the embedding, or the context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, run: Run) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = run(layer, x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = run(layer, x, context)
            elif isinstance(layer, AttentionBlock):
                x = run(layer, x)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """``model(x, timesteps, context, y)``, with the constructor of published configurations.

    Arguments:
        image_size: Side of a sample in latent pixels, or a pair of sides.
        in_channels: Channels of x.
        model_channels: Width of the first level, a multiple of 32.
        out_channels: Channels of the prediction.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attention_resolutions: Factors of downsampling at which there is attention.
        dropout: Rate in the residual blocks.
        channel_mult: Width of each level in ``model_channels``; the first is 1.
        conv_resample: Whether changes of resolution are learned.
        dims: Spatial dimensions, 1 or 2.
        num_classes: Number of classes of a class-conditional model.
        use_checkpoint: Recompute blocks in the backward pass instead of keeping activations.
        use_fp16: Accepted for published configurations, and without effect.
        num_heads: Heads of attention, or -1 where ``num_head_channels`` is given.
        num_head_channels: Width of a head, or -1 where ``num_heads`` is given.
        num_heads_upsample: Heads on the way up, or -1 for ``num_heads``.
        use_scale_shift_norm: Whether the embedding scales and shifts after the norm.
        resblock_updown: Whether residual blocks change the resolution.
        use_new_attention_order: Whether q, k and v are split before the heads.
        use_spatial_transformer: Attention to a context, by transformer blocks.
        transformer_depth: Transformer blocks at each place.
        context_dim: Width of the context.
        n_embed: Predict the logits of that many codebook entries instead of noise.
        legacy: The older rule for the width of a head.

    Attributes:
        config: These arguments.

    Raises:
        ModelError: Options contradict each other; all are listed.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = {
            k: list(v) if isinstance(v, Sequence) else v for k, v in given.items()
        }
        check_options(self.config)
        attend = partial(make_attention, self.config)
        self.model_channels, self.num_classes = model_channels, num_classes
        self.use_checkpoint = use_checkpoint
        width = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, width)
        convolution = CONVOLUTIONS[dims]
        residual: Callable[..., ResBlock] = partial(
            ResBlock,
            emb_channels=width,
            dropout=dropout,
            scale_shift=use_scale_shift_norm,
            dims=dims,
        )

        def resample(channels: int, way: str) -> nn.Module:
            if resblock_updown:
                return residual(channels, channels, resample=way)
            return RESAMPLE[way](channels, conv_resample, dims)

        channels, factor = model_channels, 1
        self.input_blocks = nn.ModuleList(
            [Stage(convolution(in_channels, channels, 3, padding=1))]
        )
        skips = [channels]
        for level, multiple in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                stage = Stage(residual(channels, multiple * model_channels))
                channels = multiple * model_channels
                if factor in attention_resolutions:
                    stage.append(attend(channels))
                self.input_blocks.append(stage)
                skips.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Stage(resample(channels, "down")))
                skips.append(channels)
                factor *= 2
        self.middle_block = Stage(
            residual(channels, channels), attend(channels), residual(channels, channels)
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                stage = Stage(residual(channels + skips.pop(), multiple * model_channels))
                channels = multiple * model_channels
                if factor in attention_resolutions:
                    stage.append(attend(channels, up=True))
                if level and i == num_res_blocks:
                    stage.append(resample(channels, "up"))
                    factor //= 2
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            zeroed(convolution(channels, out_channels, 3, padding=1)),
        )
        self.id_predictor = None
        if n_embed is not None:
            self.id_predictor = nn.Sequential(
                GroupNorm32(channels), convolution(channels, n_embed, 1)
            )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | float,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """The prediction for noisy samples.

        Arguments:
            x: ``(B, in_channels, *)``.
            timesteps: Training indices or times, ``()`` or ``(B,)``.
            context: ``(B, M, context_dim)``, for a model with transformer blocks.
            y: Classes ``(B,)``, for a class-conditional model.

        Returns:
            ``(B, out_channels, *)``.

        Raises:
            ModelError: Classes are missing, or given to a model that has none.
        """
        if (y is None) != (self.num_classes is None):
            raise ModelError(
                "classes are missing" if y is None else "classes for a model that has none",
                where="UNetModel.forward",
                fix=f"pass y= of shape (B,), 0 to {self.num_classes - 1}"
                if self.num_classes
                else "leave y out",
            )
        # One row a sample even where all share a timestep, as published samplers call it: a
        # product over one row rounds differently from one over several.
        t = time_tensor(timesteps).to(x.device).reshape(-1).expand(x.shape[0])
        dtype: torch.dtype = self.out[0].weight.dtype  # type: ignore[assignment]
        emb = self.time_embed(sinusoidal(t, self.model_channels).to(dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        run = self._recomputed if self.use_checkpoint and self.training else _direct
        h = x.to(dtype)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, emb, context, run)
            skips.append(h)
        h = self.middle_block(h, emb, context, run)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context, run)
        head = self.out if self.id_predictor is None else self.id_predictor
        return head(h).to(x.dtype)

    def _recomputed(self, layer: nn.Module, *args: Tensor | None) -> Tensor:
        """Runs a layer keeping only its inputs; recomputing sees the timestep of this call."""
        more: Any = {"context_fn": clock_of(self).preserve} if is_quantized(self) else {}
        return checkpoint(layer, *args, use_reentrant=False, **more)  # type: ignore[return-value]


def _direct(layer: nn.Module, *args: Tensor | None) -> Tensor:
    return layer(*args)
