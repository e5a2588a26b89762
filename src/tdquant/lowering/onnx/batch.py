"""Batch sizes that a model read in Python: see ``tdquant.lowering.openvino.batch``, which does the
same to its graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdquant.lowering.calls import BATCH, Call
from tdquant.support.optional import require

_SIZE = "batch.size"


def free_batch(model: Any, call: Call, trace: Callable[[int], Any]) -> None:
    """Has a graph take any batch, in place, if it is only constants that keep it from that.

    Arguments:
        model: A ``ModelProto`` whose inputs have the call's names.
        call: The call that was traced, with BATCH samples.
        trace: Traces the call with another number of samples.
    """
    graph = model.graph
    ports = {port.name: port for port in graph.input}
    if not _fixed(ports[call.sample].type.tensor_type.shape.dim[0]):
        return
    try:
        other = trace(BATCH + 1).graph
    except Exception:  # other arguments, such as lists of sizes, are of as many samples
        return
    if [n.op_type for n in graph.node] != [n.op_type for n in other.node]:
        return
    first, second = _integers(graph), _integers(other)
    if len(first) != len(second):
        return
    helper = require("onnx", "onnx").helper
    computed = [
        helper.make_node("Shape", [call.sample], [f"{_SIZE}.shape"], start=0, end=1),
        helper.make_node("Squeeze", [f"{_SIZE}.shape"], [_SIZE]),
    ]
    replaced = set()
    for (name, one), two in zip(first.items(), second.values(), strict=True):
        if one.shape == two.shape and not np.array_equal(one, two):
            computed += _linear(name, one, two - one)
            replaced.add(name)
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    nodes = [node for node in graph.node if not replaced.intersection(node.output)]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.node.extend([*computed, *nodes])
    for port in (*(ports[name] for name in call.batched), *graph.output):
        dims = port.type.tensor_type.shape.dim
        if dims and _fixed(dims[0]):
            dims[0].dim_param = "batch"


def _fixed(dimension: Any) -> bool:
    """Whether a dimension is that of the traced batch: torch writes "2" as a name, too."""
    return dimension.dim_value == BATCH or dimension.dim_param == str(BATCH)


def _integers(graph: Any) -> dict[str, NDArray[np.int64]]:
    """The int64 constants of a graph by name, in its order."""
    onnx = require("onnx", "onnx")
    integer, read = onnx.TensorProto.INT64, onnx.numpy_helper.to_array
    found = {t.name: read(t) for t in graph.initializer if t.data_type == integer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            if isinstance(value, onnx.TensorProto):
                if value.data_type == integer:
                    found[node.output[0]] = read(value)
            elif node.attribute[0].name in ("value_int", "value_ints"):
                found[node.output[0]] = np.asarray(value, np.int64)
    return found


def _linear(name: str, value: NDArray[np.int64], slope: NDArray[np.int64]) -> list[Any]:
    """Nodes that compute ``value + (B - BATCH) slope``."""
    onnx = require("onnx", "onnx")
    names = [f"{name}.{part}" for part in ("least", "slope", "more")]
    numbers = (value - BATCH * slope, slope)
    constants = [
        onnx.helper.make_node(
            "Constant",
            [],
            [part],
            value=onnx.numpy_helper.from_array(np.asarray(number, np.int64)),
        )
        for part, number in zip(names, numbers, strict=False)
    ]
    return [
        *constants,
        onnx.helper.make_node("Mul", [names[1], _SIZE], [names[2]]),
        onnx.helper.make_node("Add", [names[0], names[2]], [name]),
    ]
