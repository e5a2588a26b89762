r"""Backends that are one function: how codes are multiplied. All else is the same for each.

    q = clip(round((x - o) / s), low, high)
    y = s s_w product(q) + o s_w sum_{inside} q_w + b          product(q) = sum q q_w

The function is given a layer's ``Operation`` once, and returns what computes the sums in every
call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tdquant.errors import BackendError
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.lowering import labels
from tdquant.lowering.backends import BackendFunction, Example, register_backend
from tdquant.lowering.operation import Operation
from tdquant.model_summary import Row, layer_row
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales.base import Float32
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
            step = expand_scale(quantizer.step(input), x)
            q = self.inputs.quantize(x, step)
            y = self.sums(q, step)
            if self.inputs.offset:
                y = y + self.inputs.offset * self.sums.of_ones(q, y.dtype)
        if self.bias is not None:
            y = y + self.bias.reshape(self.walk.channel)
        return y.to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"offset={self.inputs.offset}" if self.inputs and self.inputs.offset else ""


class _Sums(Float32):
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


def with_products(frozen: nn.Module, product: Product, name: str) -> nn.Module:
    """A copy of a frozen model whose quantized layers compute with a product. Layers that it
    raises BackendError for stay as they were frozen, and the summary shows why.
    """
    model = copy_sharing_tensors(frozen)
    for path, layer in list(quantized_layers(model)):
        operation = Operation.of(layer, path)
        try:
            kernel = product(operation)
        except BackendError as error:
            simulated(layer, path, error.what)
            continue
        lowered = ProductLayer(layer, path, operation)
        lowered.use(kernel, name)
        replace_module(model, layer, lowered)
    return model


def simulated(layer: QuantLayer, path: str, why: str) -> None:
    """Has the summary say why a layer of a copy stays as it was frozen."""
    layer.rows = [layer_row(path, layer).on(labels.SIMULATED, why)]  # type: ignore[assignment]


def register_product(name: str) -> Callable[[Product], Product]:
    """Registers the decorated ``Product`` as the backend ``name``."""

    def put(product: Product) -> Product:
        def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
            return with_products(frozen, product, name)

        function: BackendFunction = lower
        register_backend(name)(function)
        return product

    return put
