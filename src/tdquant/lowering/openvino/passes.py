"""Rewrites of an OpenVINO graph, in place, that keep what it computes and make it faster on CPUs:
channels stay last in memory, and nothing is moved that need not be.

They look at shapes, so they come before the batch and the sizes are freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tdquant.lowering.openvino.nodes import constant, operators, replace, shape
from tdquant.lowering.openvino.time import merge_time_products


def optimize(graph: Any, timestep: str) -> None:
    """All rewrites.

    Arguments:
        graph: An ``openvino.Model`` of static shapes.
        timestep: Name of the input that is the timestep.
    """
    cancel_transposes(graph)
    hoist_norms(graph)
    decompose_norms(graph)
    flatten_channels_last(graph)
    decompose_attention(graph)
    scale_heads(graph)
    join_splits(graph)
    merge_time_products(graph, timestep)
    graph.validate_nodes_and_infer_types()


def cancel_transposes(graph: Any) -> None:
    """Removes transposes that undo the one before them."""
    for node, order in _transposes(graph):
        first = node.input_value(0).get_node()
        if first.get_type_name() == "Transpose":
            before = constant(first.input_value(1))
            if before is not None and [before[i] for i in order] == list(range(len(order))):
                replace(node.output(0), first.input_value(0))


def hoist_norms(graph: Any) -> None:
    """Moves group norms before the reshape that flattens the positions of an image: the norm of
    each channel is the same, and images have their channels last.
    """
    op = operators()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        flat = node.input_value(0).get_node()
        if not _flattens(flat):
            continue
        about = node.get_attributes()
        norm = op.group_normalization(
            flat.input_value(0), *node.input_values()[1:], about["num_groups"], about["epsilon"]
        )
        norm.set_friendly_name(node.get_friendly_name())
        again = op.reshape(norm, flat.input_value(1), flat.get_attributes()["special_zero"])
        replace(node.output(0), again.output(0))


def decompose_norms(graph: Any) -> None:
    r"""Writes every GroupNormalization of ``(B, C, *)`` as sums over the positions of each channel
    and one multiplication and addition a value:

        m_c = mean x,    v_g = mean_c (|x_c|^2 / n - m_c^2 + (m_c - m_g)^2)
        a_c = w_c / sqrt(v_g + eps),    y = a_c x + (b_c - a_c m_g)

    OpenVINO's own form reshapes x to groups, for which channels that are last in memory, as
    convolutions want them, are moved and moved back. Its CPU plugin also dies of a segmentation
    fault (2026.4) while it compiles a GroupNormalization whose result meets another elementwise
    operation.
    """
    op = operators()
    for node in graph.get_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        x, weight, bias = node.input_values()
        about = node.get_attributes()
        rank = x.get_partial_shape().rank.get_length()
        axes = op.constant(np.arange(2, rank))
        zero, last = op.constant(np.int64(0)), op.constant(np.array([2]))
        size = op.gather(op.shape_of(x), axes, zero)
        count = op.convert(op.reduce_prod(size, zero, False), np.float32)
        groups = op.constant(np.array([0, about["num_groups"], -1]))
        mean = op.reshape(op.reduce_mean(x, axes, True), groups, True)
        norm = op.reshape(op.reduce_l2(x, axes, True), groups, True)
        whole = op.reduce_mean(mean, last, True)
        away = op.subtract(mean, whole)
        spread = op.subtract(op.divide(op.multiply(norm, norm), count), op.multiply(mean, mean))
        spread = op.reduce_mean(op.add(spread, op.multiply(away, away)), last, True)
        deviation = op.sqrt(op.add(op.relu(spread), op.constant(np.float32(about["epsilon"]))))
        weights, biases = (
            op.reshape(value, op.constant(np.array([1, about["num_groups"], -1])), False)
            for value in (weight, bias)
        )
        scale = op.divide(weights, deviation)
        shift = op.subtract(biases, op.multiply(scale, whole))
        channels = op.constant(np.array([0, -1] + [1] * (rank - 2)))
        found = op.add(
            op.multiply(x, op.reshape(scale, channels, True)), op.reshape(shift, channels, True)
        )
        found.set_friendly_name(node.get_friendly_name())
        replace(node.output(0), found.output(0))


def flatten_channels_last(graph: Any) -> None:
    """Turns ``(B, C, H, W) -> (B, C, HW) -> (B, HW, C)``, and its reverse, into a transposition of
    four dimensions and a reshape of what is then in order: with the channels last in memory
    neither moves anything.
    """
    op = operators()
    for node, order in _transposes(graph):
        if list(order) != [0, 2, 1]:
            continue
        flat = node.input_value(0).get_node()
        if _flattens(flat):
            image = op.transpose(flat.input_value(0), op.constant(np.array([0, 2, 3, 1])))
            channels = flat.get_output_shape(0)[1]
            rows = op.reshape(image, op.constant(np.array([0, -1, channels])), True)
            replace(node.output(0), rows.output(0))
            continue
        for user in list(node.output(0).get_target_inputs()):
            image = user.get_node()
            if image.get_type_name() != "Reshape" or not _unflattens(image):
                continue
            places = op.constant(np.array([0, 2, 3, 1]))
            shape = op.gather(image.input_value(1), places, op.constant(np.int64(0)))
            rows = op.reshape(node.input_value(0), shape, image.get_attributes()["special_zero"])
            turned = op.transpose(rows, op.constant(np.array([0, 3, 1, 2])))
            replace(image.output(0), turned.output(0))


def decompose_attention(graph: Any) -> None:
    """Writes attention without a mask as its two products. OpenVINO would do the same, but leave a
    transposition of the keys as a pass over memory of its own.
    """
    op = operators()
    for node in graph.get_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        query, key, value = node.input_values()[:3]
        sizes = query.get_partial_shape()
        if len(node.input_values()) > 3 or node.get_attributes()["causal"]:
            continue
        if sizes.rank != 4 or sizes[3].is_dynamic:
            continue
        scaled = op.multiply(query, op.constant(np.float32(sizes[3].get_length() ** -0.5)))
        turned = op.transpose(key, op.constant(np.array([0, 1, 3, 2])))
        found = op.matmul(
            op.softmax(op.matmul(scaled, turned, False, False), -1), value, False, False
        )
        found.set_friendly_name(node.get_friendly_name())
        replace(node.output(0), found.output(0))


def scale_heads(graph: Any) -> None:
    """Moves what is multiplied with, added to or divided into the result of an attention before
    the transposition of its heads, ``(B, heads, N, C) -> (B, N, heads, C)``. OpenVINO's CPU plugin
    dies of a segmentation fault (2026.4) while it compiles such an operation behind it, as in
    LongCat's audio model, which multiplies with the mask of its queries.
    """
    op = operators()
    found = {
        "Add": op.add, "Divide": op.divide, "Multiply": op.multiply, "Subtract": op.subtract,
    }  # fmt: skip
    waiting = list(_transposes(graph))
    while waiting:
        node, order = waiting.pop()
        heads = node.input_value(0)
        whole = heads.get_node().get_type_name() in ("MatMul", "ScaledDotProductAttention", *found)
        if list(order) != [0, 2, 1, 3] or not whole:
            continue
        for user in [port.get_node() for port in node.output(0).get_target_inputs()]:
            sides = list(user.input_values())
            others = [side for side in sides if side != node.output(0)]
            if user.get_type_name() not in found or len(others) != 1:
                continue
            if constant(others[0]) is not None or others[0].get_partial_shape().rank != 4:
                continue
            turned = op.transpose(others[0], op.constant(order)).output(0)
            sides = [heads if side == node.output(0) else turned for side in sides]
            scaled = found[user.get_type_name()](*sides)
            scaled.set_friendly_name(user.get_friendly_name())
            back = op.transpose(scaled, op.constant(order))
            replace(user.output(0), back.output(0))
            waiting.append((back, order))


def join_splits(graph: Any) -> None:
    """Removes splits of a concatenation into the parts that it was made of."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "VariadicSplit":
            continue
        whole = node.input_value(0).get_node()
        axis, lengths = (constant(value) for value in node.input_values()[1:])
        if whole.get_type_name() != "Concat" or axis is None or lengths is None:
            continue
        sizes, along, parts = shape(whole.output(0)), int(axis.reshape(())), whole.input_values()
        if sizes is None or (whole.get_attributes()["axis"] - along) % len(sizes):
            continue
        if [part.get_shape()[along] for part in parts] == list(lengths):
            for output, part in zip(node.outputs(), parts, strict=True):
                replace(output, part)


def _transposes(graph: Any) -> Iterator[tuple[Any, np.ndarray[Any, Any]]]:
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Transpose":
            order = constant(node.input_value(1))
            if order is not None:
                yield node, order


def _flattens(node: Any) -> bool:
    """Whether a node reshapes ``(B, C, H, W)`` to ``(B, C, HW)``."""
    if node.get_type_name() != "Reshape":
        return False
    before, after = shape(node.input_value(0)), shape(node.output(0))
    return bool(before and len(before) == 4 and after == [*before[:2], before[2] * before[3]])


def _unflattens(node: Any) -> bool:
    """Whether a Reshape makes ``(B, C, H, W)`` of ``(B, C, HW)``."""
    before, after = shape(node.input_value(0)), shape(node.output(0))
    return bool(after and len(after) == 4 and before == [*after[:2], after[2] * after[3]])
