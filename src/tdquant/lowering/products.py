r"""Backends that are one function: how codes are multiplied. All else is the same for each.

    q = clip(round((x - o) / s), low, high)
    y = s s_w product(q) + o s_w sum_{inside} q_w + b          product(q) = sum q q_w

The function is given a layer's ``Operation`` once, and returns what computes the sums in every
call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import BackendError
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.lowering import labels
from tdquant.lowering.backends import Example, register_backend
from tdquant.lowering.operation import Operation
from tdquant.model_summary import Row, layer_row
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import bank_tables
from tdquant.scales.base import KeepFloat32Mixin
from tdquant.support.sharing import copy_sharing_tensors

Product = Callable[[Operation], Callable[[Tensor], Tensor]]
"""From an operation to its sums: codes, whole numbers in float32 of the shape of the layer's input
and not padded, to ``sum q q_w`` in float32 or float64.

What it returns is a module if it holds tensors; its ``name``, if it has one, is what the summary
calls the kernel. It raises BackendError for operations that it cannot compute.
"""


class ProductLayer(nn.Module):
    """A layer on codes, called as the frozen one. It keeps the weight and the sizes: models ask
    their layers for them.

    Arguments:
        layer: A frozen quantized layer.
        path: Its path.
        operation: What it computes.
        weight: Whether to keep the weight; otherwise an empty one of its type stays.

    Attributes:
        rows: What ``tdq.summary`` shows.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, layer: QuantLayer, path: str, operation: Operation, weight: bool = True
    ) -> None:
        super().__init__()
        self.input_quantizer = layer.input_quantizer
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))
        layer.hold_numbers()
        held = layer.weight if weight else layer.weight.new_empty(0)
        self.weight, self.bias = nn.Parameter(held, requires_grad=False), layer.bias
        self.inputs, self.walk = operation.inputs, operation.geometry
        self.sums = _Sums(operation)
        self.rows: list[Row] = []
        self._row = layer_row(path, layer)

    def use(self, kernel: Callable[[Tensor], Tensor], name: str, note: str = "") -> None:
        """Has a kernel compute the sums.

        Arguments:
            kernel: What a ``Product`` returned.
            name: What the summary calls it if it has no name.
            note: What there is to say about it.
        """
        self.sums.kernel = kernel
        self.rows = [self._row.on(getattr(kernel, "name", name), note)]

    def forward(self, input: Tensor) -> Tensor:
        x, quantizer = input.float(), self.input_quantizer
        if self.inputs is None or not isinstance(quantizer, ActivationQuantizer):
            y = self.sums(x, None)
        else:
            step = quantizer.step(input)
            q = self.inputs.quantize(x, step)
            y = self.sums(q, step)
            if self.inputs.offset:
                y = y + self.inputs.offset * self.sums.of_ones(q, y.dtype)
        if self.bias is not None:
            y = y + self.bias.reshape(self.walk.channel)
        return y.to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"offset={self.inputs.offset}" if self.inputs and self.inputs.offset else ""


class _Sums(KeepFloat32Mixin):
    """The sums of a layer, scaled; all that it holds survives casts."""

    step: Tensor
    columns: Tensor | None
    kernel: Callable[[Tensor], Tensor]

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.walk = operation.geometry
        self.register_buffer("step", operation.channel_steps().reshape(self.walk.channel))
        shifted = operation.inputs is not None and operation.inputs.offset
        self.register_buffer("columns", operation.channel_sums() if shifted else None)

    def forward(self, q: Tensor, step: Tensor | None) -> Tensor:
        """``s s_w sum q q_w``."""
        y = self.kernel(q)
        scale = self.step.to(y.dtype)
        return y * (scale if step is None else step.to(y.dtype) * scale)

    def of_ones(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """``s_w sum_{inside} q_w``."""
        assert self.columns is not None
        return self.step.to(dtype) * self.walk.ones_product(q.to(dtype), self.columns)


def lower_layers(
    frozen: nn.Module, make: Callable[[QuantLayer, str, Operation], nn.Module], bank: bool = True
) -> nn.Module:
    """A copy of a frozen model with other layers, which shares the tensors that it keeps.

    Arguments:
        frozen: The frozen model; it stays as it is.
        make: From a quantized layer of the copy, its path and its operation to what takes its
            place. A layer for which it raises BackendError stays, and the summary shows why.
        bank: Whether to join all scale tables into one lookup a call.
    """
    model = copy_sharing_tensors(frozen)
    for path, layer in list(quantized_layers(model)):
        try:
            replace_module(model, layer, make(layer, path, Operation.of(layer, path)))
        except BackendError as error:
            rows: Any = [layer_row(path, layer).on(labels.SIMULATED, error.what)]
            layer.rows = rows
    if bank:
        bank_tables(q for _, q in activation_quantizers(model))
    return model


def register_product(name: str) -> Callable[[Product], Product]:
    """Registers the decorated ``Product`` as the backend ``name``."""

    def put(product: Product) -> Product:
        def make(layer: QuantLayer, path: str, operation: Operation) -> nn.Module:
            kernel = product(operation)
            lowered = ProductLayer(layer, path, operation)
            lowered.use(kernel, name)
            return lowered

        def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
            return lower_layers(frozen, make, bank=False)

        register_backend(name)(lower)
        return product

    return put
