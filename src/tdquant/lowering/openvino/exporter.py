r"""OpenVINO: a frozen model as ``.xml`` and ``.bin``.

Each quantized layer becomes

    x -> Divide(s) -> Round -> FakeQuantize(low .. low + 255) -> product -> Multiply(s) -> Add(b)

with the product over ``Multiply(Convert(int8 codes), s_w)``. The range of the FakeQuantize is
constant, so OpenVINO's low-precision passes take it for unit-scale int8: codes go to its kernels
as uint8 with the zero point -low. They know 256 levels; narrower grids are clamped first.

A zero point costs the kernels time, most at the border of small images. Where its part of the sum
is cheaper to add afterwards, codes are counted from the lowest one:

    s s_w (q * q_w) = s s_w ((q - low) * q_w + low (1 * q_w))

**Saturation.** On x86 without VNNI the kernels can saturate (``tdquant.lowering.operation``). An
ordinary file is fast where they do not, and a session takes the FakeQuantize of layers at risk out
where they do (``graph.avoid_saturation``). ``portable=True`` writes the file without
them, right on every machine and slower: those layers run in float.

**Weights** of 4 bits and fewer are int4 in the file, converted to int8 while the graph is
compiled; in groups, times int8 multipliers.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdquant.lowering.calls import BATCH, Call, engine_errors
from tdquant.lowering.exporters import register_exporter
from tdquant.lowering.layer import LoweredLayer
from tdquant.lowering.lowered import Factor, LoweredAttention, lower
from tdquant.lowering.openvino.batch import free_batch
from tdquant.lowering.openvino.graph import (
    EXACT,
    avoid_saturation,
    content,
    mark_float,
    pack_int4,
    write_sealed,
)
from tdquant.lowering.openvino.nodes import operators
from tdquant.lowering.openvino.passes import optimize
from tdquant.lowering.openvino.tracing import trace
from tdquant.lowering.operand import Operand
from tdquant.lowering.operation import INT8_CODES
from tdquant.lowering.sealing import KEY, description_text
from tdquant.support.memory import trim_heap
from tdquant.support.optional import require

SMALL = 256
"""Positions of an image up to which a map of them is read faster than its border is corrected."""


@torch.library.custom_op("tdquant::levels", mutates_args=())
def levels(codes: Tensor, low: int) -> Tensor:
    """Marks codes ``low .. low + 255`` for the engine; returns the input."""
    return codes.clone()


@levels.register_fake
def _(codes: Tensor, low: int) -> Tensor:
    return torch.empty_like(codes)


@torch.library.custom_op("tdquant::weight", mutates_args=())
def traced_weight(codes: Tensor, step: Tensor) -> Tensor:
    """``codes * step`` in the graph. While it is traced, zeros of that shape in the memory of one:
    a trace keeps every weight that it sees formed until it ends.
    """
    return step.new_zeros(()).expand(codes.shape)


@traced_weight.register_fake
def _(codes: Tensor, step: Tensor) -> Tensor:
    return step.new_zeros(()).expand(codes.shape)


def codes_of(operand: Operand, x: Tensor, step: Tensor) -> Tensor:
    """The nearest codes as whole numbers, left for the engine's 256 levels to clamp where the grid
    has as many.
    """
    if operand.codes.span == INT8_CODES - 1:
        return operand.codes.ratio(x, step).round()
    return operand.quantize(x, step)


class OpenVINOLayer(LoweredLayer):
    """``s (q * (s_w q_w))``: OpenVINO moves s_w behind the integer product by itself."""

    @property
    def weight(self) -> Tensor:
        """The weight in the graph: zeros while it is traced, see ``traced_weight``."""
        if self.weight_step is None:
            return self.weight_codes
        return traced_weight(self.weight_codes, self.weight_step)

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        trim_heap()  # of activations: a gigabyte of an 860M-parameter UNet, while it is traced
        return found

    def product(self, x: Tensor, operand: Operand) -> Tensor:
        step, low = operand.step(x), operand.codes.low
        codes = codes_of(operand, x, step)
        if not low or not self._shifts(x):
            return self.inner.convolve(levels(codes, low), self.weight) * step
        product = self.inner.convolve(levels(codes - low, 0), self.weight)
        return (product + low * self.ones_product(x)) * step

    def _shifts(self, x: Tensor) -> bool:
        """Whether to count codes from the lowest. What that adds is a number a channel, or, where
        zeros are padded, one a position and channel.
        """
        return not any(self.walk.zeros) or x[0, 0].numel() <= SMALL


class OpenVINOAttention(LoweredAttention):
    """Products of two quantized activations."""

    signed = True

    def multiply(self, left: Factor, right: Factor, turned: bool) -> Tensor:
        (one, a, s), (other, b, s_other) = left, right
        first = levels(codes_of(one, a, s), one.codes.low)
        b = b.transpose(-1, -2) if turned else b  # as codes, the product takes that in
        second = levels(codes_of(other, b, s_other), -128)
        return first @ (second.transpose(-1, -2) if turned else second)


def convert(model: nn.Module, call: Call, about: dict[str, Any], portable: bool = False) -> Any:
    """The OpenVINO model of a frozen copy, described, with free batch size, height and width.

    Raises:
        ExportError: The model cannot be traced.
        MissingDependencyError: OpenVINO is not installed.
    """
    frontend = require("openvino.frontend.pytorch", "openvino")

    def fake_quantize(context: Any) -> list[Any]:
        op = operators()
        low = context.get_values_from_const_input(1)
        ends = [op.constant(np.float32(end)) for end in (low, low + INT8_CODES - 1)]
        return op.fake_quantize(context.get_input(0), *ends, *ends, INT8_CODES).outputs()

    def multiply_out(context: Any) -> list[Any]:
        op = operators()
        codes, step = context.get_input(0), context.get_input(1)
        return op.multiply(op.convert(codes, np.float32), step).outputs()

    def traced(batch: int) -> Any:
        return trace(
            lowered,
            list(call.with_batch(batch).values()),
            [
                frontend.ConversionExtension("tdquant::levels", fake_quantize),
                frontend.ConversionExtension("tdquant::weight", multiply_out),
            ],
        )

    lowered = lower(model, call, OpenVINOLayer, OpenVINOAttention)
    groups = {
        content(layer.weight_codes): layer.groups_of_weight
        for layer in lowered.modules()
        if isinstance(layer, OpenVINOLayer) and layer.groups_of_weight is not None
    }
    with engine_errors(
        "OpenVINO cannot trace the model",
        type(model).__name__,
        'tdq.compile(frozen, backend="onednn"), which runs the model itself',
        last=True,
    ):
        graph = traced(BATCH)
        for port, name in zip(graph.inputs, call.tensors, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name)
        free_batch(graph, call, traced)
    for index, port in enumerate(graph.outputs):
        port.get_tensor().set_names({f"output.{index}"})
    graph.reshape({name: list(tensor.shape) for name, tensor in call.tensors.items()})
    optimize(graph, call.timestep)
    _free_shapes(graph, call)
    shapes = {
        name: [n.get_length() if n.is_static else None for n in port.get_partial_shape()]
        for name, port in zip(call.tensors, graph.inputs, strict=True)
    }
    rows = [asdict(row) for row in lowered.rows]
    if portable:
        mark_float(rows, avoid_saturation(graph))
    pack_int4(graph, groups)
    one_time = lowered.values.one_time
    description = {**about, **call.description(shapes), "one_time": one_time, "rows": rows}
    graph.set_rt_info(description_text(description), [KEY])
    for name, value in EXACT.items():  # as the file itself asks for, wherever it is run
        graph.set_rt_info(value, ["runtime_options", name])
    return graph


def _free_shapes(graph: Any, call: Call) -> None:
    """Frees the batch size everywhere, and height and width of the sample if other sizes fit."""
    spatial = range(2, call.tensors[call.sample].ndim)
    fixed = {
        name: [-1 if name in call.batched and i == 0 else n for i, n in enumerate(tensor.shape)]
        for name, tensor in call.tensors.items()
    }
    free = {
        **fixed,
        call.sample: [-1 if i in spatial else n for i, n in enumerate(fixed[call.sample])],
    }
    doubled = {name: [BATCH + 1 if n == -1 else n for n in shape] for name, shape in fixed.items()}
    for axis in spatial:
        doubled[call.sample][axis] = 2 * int(call.tensors[call.sample].shape[axis])
    try:
        graph.clone().reshape(doubled)
        graph.reshape(free)
    except RuntimeError:
        graph.reshape(fixed)


@register_exporter(".xml")
def write(model: nn.Module, path: Path, call: Call, about: dict[str, Any], portable: bool) -> None:
    """Writes ``path`` and the ``.bin`` beside it, which holds the constants."""
    write_sealed(convert(model, call, about, portable), path)
