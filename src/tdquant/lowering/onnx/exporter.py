r"""ONNX: a frozen model as ``.onnx`` of opset 21, operators of the standard alone.

Each quantized layer becomes

    x -> Div(s) -> QuantizeLinear(1, z) -> patches -> DequantizeLinear(1, z)
      -> MatMul -> Mul(s) -> Add(b)

with the weight behind a DequantizeLinear of its own. The division by the temporal step is a node
of its own, so that every scale is constant: OpenVINO, too, runs the file. ONNX Runtime fuses
``MatMul`` between two DequantizeLinear into one product of int8 matrices with float output.

**Convolutions** are matrix products over patches of codes, one byte an element: the integer
convolution of ONNX Runtime, ``QLinearConv``, rounds its output to 8 bits, which would not be what
the frozen model computes. Those in groups stay in float.

**Saturation.** On x86 without VNNI products of uint8 with int8 saturate (see
``lowering.operation``); of uint8 with uint8 they do not and are slower. A session asks ONNX
Runtime for these where it has to; ``portable=True`` writes the weights of layers at risk as uint8
around 128, right on every machine.

**Weights** of 4 bits and fewer are int4 in the file, cast to int8 when it is loaded.

References:
    ONNX operators, opset 21 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdquant.files.looking import is_file
from tdquant.layers import QuantLayer
from tdquant.lowering import labels
from tdquant.lowering.calls import BATCH, Call, engine_errors
from tdquant.lowering.exporters import register_exporter
from tdquant.lowering.layer import LoweredLayer
from tdquant.lowering.lowered import Factor, LoweredAttention, lower
from tdquant.lowering.onnx.batch import free_batch
from tdquant.lowering.onnx.operators import OPSET, dequantize, patches, quantize, translations
from tdquant.lowering.openvino.tracing import quiet_tracing
from tdquant.lowering.operand import Operand
from tdquant.lowering.operation import INT8_CODES
from tdquant.lowering.sealing import CONSTANTS, KEY, description_text, seal
from tdquant.support.optional import require

LARGEST = 2**31 - 2**24
"""Bytes of constants that a single file holds; protobuf ends at 2 GB."""


class ONNXLayer(LoweredLayer):
    """``s (q * (s_w q_w))`` as a product of matrices of 8-bit codes."""

    codes: Tensor
    code_zero: Tensor

    def __init__(
        self, layer: QuantLayer, operand: Operand | None, path: str, portable: bool = False
    ) -> None:
        super().__init__(layer, operand, path)
        self.multiplies = not self.reason and self.walk.groups == 1
        if not self.multiplies or self.weight_step is None:
            return
        codes = self.weight_codes.movedim((1, 0), (-2, -1)).flatten(0, -2)
        zero = torch.zeros(codes.shape[1], dtype=torch.int8)
        if portable and self.saturates:
            codes, zero = (codes.int() + 128).to(torch.uint8), (zero.int() + 128).to(torch.uint8)
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("code_zero", zero)
        self.weight_step = self.weight_step.reshape(-1)
        self.weight_codes = torch.empty(0, dtype=torch.float32)

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        if not self.multiplies:
            return super().weight
        rows = dequantize(self.codes, self.weight_step, self.code_zero).t()
        return rows.unflatten(1, (*self.taps, -1)).movedim(-1, 1)

    @property
    def kernel(self) -> tuple[str, str]:
        if self.multiplies:
            return super().kernel
        return labels.FLOAT, self.reason or labels.GROUPED

    def product(self, x: Tensor, operand: Operand) -> Tensor:
        step = operand.step(x)
        if not self.multiplies:
            return self.inner.convolve(operand.quantize(x, step), self.weight) * step
        q, walk = _codes(operand, x, step), self.walk
        if walk.dims:
            zero = -operand.codes.low
            q = patches(q, self.taps, walk.stride, walk.dilation, walk.zeros, zero)
        weight = dequantize(self.codes, self.weight_step, self.code_zero)
        y = _centred(operand, q) @ weight
        return (y.movedim(-1, 1) if walk.dims else y) * step


class ONNXAttention(LoweredAttention):
    """Products of the codes of two activations."""

    def multiply(self, left: Factor, right: Factor, turned: bool) -> Tensor:
        codes = (_centred(operand, _codes(operand, x, step)) for operand, x, step in (left, right))
        return next(codes) @ next(codes)


def _codes(operand: Operand, x: Tensor, step: Tensor) -> Tensor:
    """The codes of x as uint8, counted from the lowest."""
    codes = operand.codes
    zero = torch.tensor(-codes.low, dtype=torch.uint8)
    q = quantize(codes.ratio(x, step), zero)
    return q if codes.span == INT8_CODES - 1 else q.clamp(0, codes.span)


def _centred(operand: Operand, q: Tensor) -> Tensor:
    """Codes counted from zero, in float, of codes counted from the lowest."""
    # A constant of the graph: of one that the graph expands, OpenVINO does not know the rank.
    one = torch.tensor(1.0, dtype=torch.float32)
    return dequantize(q, one, torch.tensor(-operand.codes.low, dtype=torch.uint8))


def convert(model: nn.Module, call: Call, about: dict[str, Any], portable: bool = False) -> Any:
    """The ONNX model of a frozen copy, described, with free batch size, and height and width
    where the model allows it.

    Raises:
        ExportError: The model cannot be traced.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    require("onnx", "onnx")
    lowered = lower(model, call, partial(ONNXLayer, portable=portable), ONNXAttention)

    def traced(batch: int) -> Any:
        tensors = call.with_batch(batch)
        program = torch.onnx.export(
            _traced(lowered, tensors, _free(call)),
            tuple(tensors.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(_free(call),),
            custom_translation_table=translations(),
            optimize=False,  # ONNX Runtime does that itself, and in seconds
            verbose=False,
        )
        assert program is not None
        made = program.model_proto
        _name(made.graph, list(call.tensors))
        return made

    with (
        engine_errors(
            "the model cannot be traced",
            type(model).__name__,
            'tdq.compile(frozen, backend="onednn"), which runs the model itself',
        ),
        torch.no_grad(),
        _quiet(),
    ):
        graph = traced(BATCH)
        free_batch(graph, call, traced)
    shapes = {
        port.name: [d.dim_value or None for d in port.type.tensor_type.shape.dim]
        for port in graph.graph.input
    }
    description = {
        **about,
        **call.description(shapes),
        "one_time": lowered.values.one_time,
        "rows": [asdict(row) for row in lowered.rows],
    }
    graph.metadata_props.add(key=KEY, value=description_text(description))
    return graph


def _name(graph: Any, names: list[str]) -> None:
    """Names inputs as the model does and outputs by number; other values give way."""
    new = {value: f"{value}.0" for node in graph.node for value in node.output if value in names}
    new |= {port.name: name for port, name in zip(graph.input, names, strict=True)}
    new |= {port.name: f"output.{i}" for i, port in enumerate(graph.output)}
    for node in graph.node:
        node.input[:] = [new.get(value, value) for value in node.input]
        node.output[:] = [new.get(value, value) for value in node.output]
        del node.metadata_props[:]  # where in Python each came from: a quarter of the file
    for port in (*graph.input, *graph.output, *graph.value_info):
        port.name = new.get(port.name, port.name)


def _traced(lowered: nn.Module, tensors: Mapping[str, Tensor], free: Any) -> Any:
    """The program of a call, or the module, for the exporter to trace in its own way.

    That takes no sizes to be equal, such as the batch of an attention mask and that of the sample,
    and stops where a model needs them to be.
    """
    try:
        inputs = tuple(tensors.values())
        return torch.export.export(lowered, inputs, dynamic_shapes=(free,), strict=False)
    except Exception:  # torch.export raises whatever the model does
        return lowered


def _free(call: Call) -> tuple[dict[int, Any], ...]:
    """Which dimensions of each input are free: torch.export settles what the model fixes."""
    auto = torch.export.Dim.AUTO
    return tuple(
        ({0: auto} if name in call.batched else {})
        | (dict.fromkeys(range(2, tensor.ndim), auto) if name == call.sample else {})
        for name, tensor in call.tensors.items()
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings, logs and prints of torch's exporter, which prints a graph that fails."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_tracing(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def pack_int4(graph: Any) -> None:
    """Replaces int8 constants whose values int4 holds by int4 ones, in place, cast back to int8:
    ONNX Runtime does that once, when it loads the graph.
    """
    onnx = require("onnx", "onnx")
    types, helper = onnx.TensorProto, onnx.helper
    for tensor in graph.graph.initializer:
        if tensor.data_type != types.INT8:
            continue
        codes = onnx.numpy_helper.to_array(tensor)
        if not codes.ndim or not codes.size or codes.min() < -8 or codes.max() > 7:
            continue
        halves = codes.reshape(-1).view(np.uint8) & 15
        halves = np.append(halves, np.uint8(0)) if halves.size % 2 else halves
        packed = (halves[::2] | halves[1::2] << 4).tobytes()
        name = tensor.name
        tensor.CopyFrom(
            helper.make_tensor(f"{name}.int4", types.INT4, codes.shape, packed, raw=True)
        )
        cast = helper.make_node("Cast", [tensor.name], [name], to=types.INT8)
        graph.graph.node.insert(0, cast)


def companions(path: Path) -> list[Path]:
    """The file of constants beside a graph that is too large for one file."""
    data = path.with_name(path.name + CONSTANTS)
    return [data] if is_file(data) else []


@register_exporter(".onnx")
def write(model: nn.Module, path: Path, call: Call, about: dict[str, Any], portable: bool) -> None:
    """Writes ``path``; constants of nearly 2 GB and more go to ``path.data`` beside it."""
    onnx = require("onnx", "onnx")
    graph = convert(model, call, about, portable)
    pack_int4(graph)
    # protobuf itself cannot count beyond 2 GB. int4 codes are bytes here, two each.
    large = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) >= LARGEST
    if not large:
        with engine_errors(
            "the graph of the model is not valid",
            type(model).__name__,
            'tdq.compile(frozen, backend="onednn"), or an .xml file',
        ):
            onnx.checker.check_model(graph, full_check=True)
    data = f"{path.name}{CONSTANTS}"
    onnx.save_model(graph, str(path), save_as_external_data=large, location=data)
    seal(path, companions(path))
