"""The biases that layers had before bias correction.

A corrected bias makes up for the codes that a weight has now. What runs the model in float, or
chooses other codes, starts from the bias before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tdquant.layers.base import QuantLayer, quantized_layers


@torch.no_grad()
def shift_bias(layer: QuantLayer, shift: Tensor) -> None:
    """Gives a layer its float bias plus a shift ``(C,)``, in place."""
    assert layer.bias is not None
    known = float_bias(layer)
    before = layer.bias.detach().clone() if known is None else known
    after = before + shift.to(before)
    layer.bias.copy_(after)
    layer.tdq_biases = before, after  # type: ignore[assignment]


def float_bias(layer: QuantLayer) -> Tensor | None:
    """The bias before it was corrected; None if it was not, or has changed since, as in training:
    it is then what was learned.
    """
    known: tuple[Tensor, Tensor] | None = getattr(layer, "tdq_biases", None)
    if layer.bias is None or known is None or not torch.equal(layer.bias, known[1].to(layer.bias)):
        return None
    return known[0].to(layer.bias)


@torch.no_grad()
def drop_bias_correction(model: nn.Module) -> bool:
    """Gives corrected layers their float biases, in place; returns whether there were any."""
    found = _corrected(model)
    for layer, bias in found.items():
        assert layer.bias is not None
        layer.bias.copy_(bias)
        del layer.tdq_biases
    return bool(found)


@contextlib.contextmanager
def float_biases(model: nn.Module) -> Iterator[None]:
    """Runs a model with the float biases of corrected layers."""
    found = _corrected(model)
    own = {layer: layer.bias for layer in found}
    try:
        for layer, bias in found.items():
            layer.bias = nn.Parameter(bias.clone(), layer.bias.requires_grad)  # type: ignore
        yield
    finally:
        for layer, parameter in own.items():
            layer.bias = parameter


def _corrected(model: nn.Module) -> dict[QuantLayer, Tensor]:
    known = ((layer, float_bias(layer)) for _, layer in quantized_layers(model))
    return {layer: bias for layer, bias in known if bias is not None}
