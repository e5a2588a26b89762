"""An OpenVINO graph before it is written: int4 constants, and products that could saturate; and
writing it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.lowering import labels
from tdquant.lowering.openvino.nodes import operators, replace
from tdquant.lowering.operation import INT8_CODES, saturates
from tdquant.lowering.sealing import seal
from tdquant.numerics.packing import pack
from tdquant.quantizers.groups import Groups
from tdquant.support.optional import require

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Options of the CPU: without them, and with VNNI, OpenVINO rounds the inputs of layers whose
weights alone have few bits, such as those of the time path, to 8 bits as it sees them.
"""

PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")


def pack_int4(graph: Any, groups: Mapping[bytes, Groups]) -> None:
    """Replaces int8 constants whose values int4 holds by int4 ones, in place, converted back to
    int8, and times the multipliers of groups: OpenVINO does that once, while it compiles the
    graph.

    Arguments:
        graph: An ``openvino.Model``.
        groups: ``content`` of the codes of weights -> the multipliers that they have in.
    """
    ov, op = require("openvino", "openvino"), operators()
    for node in graph.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.i8:
            continue
        data, own = torch.from_numpy(node.get_data().copy()), None
        if data.numel() and (found := groups.get(content(data))) is not None:
            rows = data.flatten(1)
            if rows.shape[1] % found.size == 0:
                own = found.multipliers.unsqueeze(2)
                data = rows.unflatten(1, (-1, found.size)).div(own, rounding_mode="trunc")
        if not data.numel() or data.min() < (-8 if own is None else -7) or data.max() > 7:
            continue
        # OpenVINO's own packing takes 20 seconds for 860 million codes, this one 2.
        packed, sizes = pack(data.to(torch.uint8) & 15, 0, 4).numpy(), list(data.shape)
        narrow = ov.op.Constant(ov.Tensor(packed, sizes, ov.Type.i4), shared_memory=False)
        whole = op.convert(narrow, np.int8) if own is None else _multiplied(narrow, own, data)
        shape = op.constant(np.array(node.get_output_shape(0)))
        replace(
            node.output(0), (whole if own is None else op.reshape(whole, shape, False)).output(0)
        )


def _multiplied(codes: Any, multipliers: Tensor, values: Tensor) -> Any:
    """int4 codes times the multipliers of their groups, as int8, looked up in a table: OpenVINO
    takes a multiplication for that by steps, which it leaves in the graph, and the layer in float.

    Arguments:
        codes: The int4 constant.
        multipliers: uint8, broadcastable to it.
        values: Its values.
    """
    op = operators()
    half = 4 if max(-int(values.min()), int(values.max())) < 4 else 8
    # Row m - 1 has the products of m with -half to half - 1, none of which is -half.
    column = torch.arange(1 - half, half)
    table = torch.arange(1, int(multipliers.max()) + 1)[:, None] * F.pad(column, (1, 0))
    first = (multipliers.int() - 1) * (2 * half) + half
    place = op.add(
        op.convert(codes, np.int32),
        op.convert(op.constant(first.to(torch.uint8).numpy()), np.int32),
    )
    entries = op.constant(table.to(torch.int8).flatten().numpy())
    return op.gather(entries, place, op.constant(np.int64(0)))


def content(codes: Tensor) -> bytes:
    """A digest of int8 codes."""
    return hashlib.sha256(codes.contiguous().numpy().tobytes()).digest()


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
    """Highest magnitude among the codes of a weight, or a bound of it."""
    node = value.get_node()
    kind, held = node.get_type_name(), node.get_element_type().get_type_name()
    if held == "i4":
        return 8
    # A Gather looks products with the multipliers of groups up.
    if kind in ("Multiply", "Convert", "Reshape", "Transpose", "Gather"):
        return _largest_weight(node.input_value(0))
    if kind != "Constant" or held != "i8":
        return 0
    return int(np.abs(node.get_data().astype(np.int16)).max(initial=0))


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
