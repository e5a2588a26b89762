"""An OpenVINO graph before it is written: int4 constants, and products that could saturate; and
writing it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdquant.errors import StorageError
from tdquant.lowering import labels
from tdquant.lowering.openvino.nodes import operators, replace
from tdquant.lowering.operation import INT8_CODES, saturates
from tdquant.lowering.sealing import seal
from tdquant.numerics.packing import pack
from tdquant.support.optional import require

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Options of the CPU: without them, and with VNNI, OpenVINO rounds the inputs of layers whose
weights alone have few bits, such as those of the time path, to 8 bits as it sees them.
"""

PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")


def pack_int4(graph: Any) -> None:
    """Replaces int8 constants whose values int4 holds by int4 ones, in place, converted back to
    int8: OpenVINO does that once, while it compiles the graph.
    """
    ov, op = require("openvino", "openvino"), operators()
    for node in graph.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.i8:
            continue
        data = node.get_data()
        if data.size and data.min() >= -8 and data.max() <= 7:
            # OpenVINO's own packing takes 20 seconds for 860 million codes, this one 2.
            packed = pack(torch.from_numpy(data & 15), 0, 4).numpy()
            narrow = ov.op.Constant(ov.Tensor(packed, data.shape, ov.Type.i4), shared_memory=False)
            replace(node.output(0), op.convert(narrow, np.int8).output(0))


def avoid_saturation(graph: Any) -> list[str]:
    """Takes the FakeQuantize out, in place, before products whose sums of two could leave 16 bits:
    they then run in float, on the same codes.

    Returns:
        Paths of the layers that do.
    """
    op, found = operators(), []
    for node in graph.get_ordered_ops():
        if node.get_type_name() not in PRODUCTS:
            continue
        one, other = (_levels(node.input_value(i)) for i in (0, 1))
        if one is None:
            continue
        low, high = _code_range(one)
        if other is None:
            largest = _largest_weight(node.input_value(1))
        else:
            largest = max(abs(end) for end in _code_range(other))
        if not saturates(high - low, largest):
            continue
        for index, levels in ((0, one), (1, other)):
            if levels is None:
                continue
            first, last, start, _ = _ends(levels)
            value = op.clamp(levels.input_value(0), first, last).output(0)
            if start != first:
                value = op.add(value, op.constant(np.float32(start - first))).output(0)
            turn = node.input_value(index).get_node()
            if turn.get_type_name() == "Transpose":
                value = op.transpose(value, turn.input_value(1)).output(0)
            node.input(index).replace_source_output(value)
        found.append(node.get_friendly_name().removeprefix("__module.denoiser.").split("/")[0])
    return found


def mark_float(rows: list[dict[str, Any]], paths: Collection[str]) -> None:
    """Marks the rows of layers, in place, that ``avoid_saturation`` made float."""
    for row in rows:
        if row["path"] in paths or row["path"].rpartition(".")[0] in paths:
            row["kernel"], row["note"] = labels.FLOAT, labels.SATURATES


def _levels(value: Any) -> Any:
    """The FakeQuantize to 256 levels that a value comes from, or None."""
    node = value.get_node()
    if node.get_type_name() == "Transpose":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != INT8_CODES:
        return None
    return node


def _ends(levels: Any) -> list[float]:
    """Lowest and highest input of a FakeQuantize, then its lowest and highest output: OpenVINO
    makes a shift of the codes before it a part of it.
    """
    return [float(levels.input_value(i).get_node().get_data().reshape(())) for i in range(1, 5)]


def _code_range(levels: Any) -> tuple[int, int]:
    """The lowest and the highest code of a FakeQuantize: narrower grids are clamped before."""
    low, high, start, _ = _ends(levels)
    shift, node = start - low, levels.input_value(0).get_node()
    if node.get_type_name() == "Clamp":
        bounds = node.get_attributes()
        low, high = max(low, bounds["min"]), min(high, bounds["max"])
    return int(low + shift), int(high + shift)


def _largest_weight(value: Any) -> int:
    """Highest magnitude among the codes of a weight."""
    node = value.get_node()
    while node.get_type_name() in ("Multiply", "Convert", "Reshape", "Transpose"):
        if node.get_element_type().get_type_name() == "i4":
            return 8
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "i8":
        return 8 if node.get_element_type().get_type_name() == "i4" else 0
    data = node.get_data().astype(np.int16)
    return int(np.abs(data).max(initial=0))


def write_sealed(graph: Any, path: Path) -> None:
    """Writes a graph with a description to ``path``, and its constants to the ``.bin`` beside it.

    Raises:
        StorageError: OpenVINO cannot write there.
    """
    constants = path.with_suffix(".bin")
    with write_errors(path):
        require("openvino", "openvino").serialize(graph, str(path), str(constants))
    seal(path, [constants])


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises StorageError where OpenVINO cannot write a graph, for which it gives no reason."""
    try:
        yield
    except RuntimeError as error:
        raise StorageError(
            "OpenVINO cannot write the graph",
            where=str(path),
            why=(str(error).strip() or "no reason given").splitlines()[-1],
            fix="a disk with room, and a folder that may be written",
        ) from error
