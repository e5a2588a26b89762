r"""Quantized attention products for diffusers' attention blocks.

    scores = q_hat k_hat^T / sqrt(d),    out = p_hat v_hat,    p = softmax(scores)

The processor replaces the block's own one and holds four activation quantizers, so that
calibration, freezing and saving see them as they see any other. Softmax gives values in [0, 1], on
an affine grid with zero at code 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

OPERANDS = ("query", "key", "probability", "value")
_SUPPORTED = ("AttnProcessor", "AttnProcessor2_0")


def attention_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Blocks below the model whose products can be quantized: diffusers ``Attention`` with its
    default processor.
    """
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if type(processor).__name__ in _SUPPORTED and hasattr(module, "to_q"):
            yield name, module


class QuantAttention(nn.Module):
    """Attention processor with fake-quantized products.

    Arguments:
        quantizers: One activation quantizer for each of ``query``, ``key``, ``probability``,
            ``value``.
    """

    def __init__(self, quantizers: dict[str, nn.Module]) -> None:
        super().__init__()
        for name in OPERANDS:
            self.add_module(f"{name}_quantizer", quantizers[name])

    def quantizer(self, operand: str) -> nn.Module:
        """The quantizer of one operand."""
        return self.get_submodule(f"{operand}_quantizer")

    def product(self, left: str, a: Tensor, right: str, b: Tensor) -> Tensor:
        """The product of two fake-quantized operands; what a backend computes its own way."""
        return self.quantizer(left)(a) @ self.quantizer(right)(b)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Any:
        # diffusers reads this signature to see which arguments a processor takes.
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        temb: Tensor | None,
    ) -> Tensor:
        """The block ``attn`` on ``(B, C, H, W)`` or ``(B, N, C)``, in diffusers' order of
        operations.
        """
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        spatial = hidden_states.ndim == 4
        if spatial:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        batch = len(hidden_states)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k, v = (
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(context)),
            heads(attn.to_v(context)),
        )
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        scores = self.product("query", q, "key", k.transpose(-1, -2)) * attn.scale
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            scores = scores + mask.view(batch, attn.heads, -1, mask.shape[-1])
        p = F.softmax(scores.float(), dim=-1).to(v.dtype)
        out = self.product("probability", p, "value", v)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2).to(q.dtype)))
        if spatial:
            out = out.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor
