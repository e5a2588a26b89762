r"""The reference backend: exact integer arithmetic, slow and right, the oracle of every other
backend.

    y = s_x s_w sum (q_x - z) q_w + b

or, where code 0 stands for a real number o and padded zeros for none,

    y = s_x s_w sum q_x q_w + o s_w sum_{inside} q_w + b

Codes are whole numbers held in float64. A product of two 16-bit codes is below 2^30, so any sum of
fewer than 2^23 of them is below 2^53 and exact, whatever the order of summation. Only the two
scales and the bias round.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer, quantized_layers, replace_module
from tdquant.lowering.backends import Example, register_backend
from tdquant.model_summary import layer_row
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer

_CONVOLUTION = ("stride", "dilation", "groups")


class ReferenceLayer(nn.Module):
    """One layer on integer codes; the other operand may stay in float.

    It keeps ``weight``, ``bias`` and what names the layer's shape, ``in_features`` or
    ``in_channels`` and so on: models ask their layers for them.

    Arguments:
        layer: A frozen quantized layer, to be replaced by this one.
        path: Its path, for errors.
    """

    codes: Tensor
    weight_scale: Tensor

    def __init__(self, layer: QuantLayer, path: str) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        row = layer_row(path, layer)
        whole = row.weight_codes is not None and row.input_codes is not None
        self.rows = [row.on("exact integers" if whole else "float64")]
        self.quantizer = layer.input_quantizer
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))
        self.geometry: dict[str, Any] = {}
        if isinstance(layer, (QuantConv1d, QuantConv2d)):
            self.geometry = {name: getattr(layer, name) for name in _CONVOLUTION}
            self.sides = list(layer._reversed_padding_repeated_twice)
            self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        frozen = layer.weight_quantizer
        if isinstance(frozen, FrozenWeight):
            codes, scale = layer.weight_codes(path).double(), frozen.step.double()
        else:
            codes, scale = layer.weight.double(), torch.ones((), dtype=torch.float64)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", scale)
        layer.hold_numbers()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        x, quantizer = input, self.quantizer
        offset = quantizer.offset if isinstance(quantizer, OffsetQuantizer) else None
        if isinstance(quantizer, ActivationQuantizer):
            scale = expand_scale(quantizer.step(x), x)
            # In float32, as the frozen model does: where x / s is a tie, both must fall on one
            # side.
            v = x.float() if offset is None else x.float() - offset
            q = (
                torch.div(v, scale)
                .round_()
                .clamp_(quantizer.grid.low, quantizer.grid.high)
                .double()
            )
        else:
            q, scale = x.double(), torch.ones((), dtype=torch.float64)
        channel = (-1,) if self.kind == "QuantLinear" else (-1, *[1] * (x.ndim - 2))
        weight_scale = self.weight_scale.reshape(channel)
        y = self._accumulate(q) * weight_scale * scale.double()
        if offset is not None:
            y = y + offset * weight_scale * self._accumulate(torch.ones_like(q[:1]))
        if self.bias is not None:
            y = y + self.bias.double().reshape(channel)
        return y.to(self.weight.dtype)

    def _accumulate(self, q: Tensor) -> Tensor:
        """Sums of products of codes, whole numbers wherever both operands are codes."""
        if self.kind == "QuantLinear":
            return F.linear(q, self.codes)
        q = F.pad(q, self.sides, self.mode)
        convolve = F.conv1d if self.kind == "QuantConv1d" else F.conv2d
        return convolve(q, self.codes, **self.geometry)


@register_backend("reference")
def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
    """A copy of the frozen model whose quantized layers are ReferenceLayers."""
    model = copy.deepcopy(frozen)
    for path, layer in list(quantized_layers(model)):
        replace_module(model, layer, ReferenceLayer(layer, path))
    return model
