"""Changes of an OpenVINO graph in place: int4 constants, what integer kernels take, norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdquant.export.operand import INT8_CODES
from tdquant.optional import require

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Options of the CPU: without them, and with VNNI, OpenVINO rounds the inputs of layers whose
weights alone have few bits, such as those of the time path, to 8 bits as it sees them.
"""


def compressed(graph: Any) -> None:
    """Replaces int8 constants whose values int4 holds by int4 ones, in place."""
    ov = require("openvino", "openvino")
    op = require("openvino.opset13", "openvino")
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8:
            data = node.get_data()
            if data.size and data.min() >= -8 and data.max() <= 7:
                small = op.constant(data, dtype=ov.Type.i4)
                node.output(0).replace(small.output(0))


def expand(graph: Any) -> None:
    """Replaces int4 constants by int8 ones, in place: the integer kernels take no others."""
    ov = require("openvino", "openvino")
    op = require("openvino.opset13", "openvino")
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i4:
            codes = op.constant(_int4(node))
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(codes.output(0))


def _int4(constant: Any) -> np.ndarray[Any, Any]:
    """The values of an int4 constant, int8; the first of each pair is the low half of a byte."""
    packed = constant.get_data().view(np.uint8).reshape(-1)
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int8)
    shape = tuple(constant.get_output_shape(0))
    return np.where(halves > 7, halves - 16, halves)[: np.prod(shape, dtype=int)].reshape(shape)


def restore_levels(graph: Any) -> None:
    """Puts the FakeQuantize back, in place, before products that were kept in float lest they
    saturate: for machines whose sums of products are 32 bits wide.
    """
    op = require("openvino.opset13", "openvino")
    for node in graph.get_ops():
        users = node.output(0).get_target_inputs() if node.get_output_size() else []
        kinds = {user.get_node().get_type_name() for user in users}
        if (
            node.get_type_name() != "Clamp"
            or node.input_value(0).get_node().get_type_name() != "Round"
            or not kinds
            or kinds - {"Convolution", "GroupConvolution", "MatMul"}
        ):
            continue
        bounds = node.get_attributes()
        if bounds["max"] - bounds["min"] >= INT8_CODES:
            continue
        ends = [op.constant(np.float32(bounds["min"] + n)) for n in (0, INT8_CODES - 1)]
        levels = op.fake_quantize(node.output(0), *ends, *ends, INT8_CODES)
        for user in users:
            user.replace_source_output(levels.output(0))


def decompose_norms(graph: Any) -> None:
    """Writes every GroupNormalization as normalized groups, scaled and shifted by channel.

    OpenVINO 2026.4's CPU plugin dies of a segmentation fault while it compiles a
    GroupNormalization whose result meets another elementwise one, as in ``norm(h) * (1 + scale)``
    of UNets with scale-shift norms. This form takes the same time.
    """
    op = require("openvino.opset13", "openvino")
    for node in graph.get_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        x, weight, bias = node.input_values()
        about = node.get_attributes()
        groups = op.reshape(x, op.constant(np.array([0, about["num_groups"], -1])), True)
        normal = op.mvn(groups, op.constant(np.array([2])), True, about["epsilon"], "inside_sqrt")
        rank = x.get_partial_shape().rank.get_length()
        channels = op.constant(np.array([1, -1] + [1] * (rank - 2)))
        scaled = op.multiply(
            op.reshape(normal, op.shape_of(x), False), op.reshape(weight, channels, False)
        )
        found = op.add(scaled, op.reshape(bias, channels, False))
        found.set_friendly_name(node.get_friendly_name())
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(found.output(0))
