"""What depends on the timestep alone, in an OpenVINO graph: made one product, or split off."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdquant.lowering.openvino.nodes import constant, operators, place, replace, shape
from tdquant.support.optional import require

PASSED = "time."
"""How names of the inputs begin that ``split_time`` gives a graph."""

_VIEWS = ("Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze", "VariadicSplit")


def merge_time_products(graph: Any, timestep: str) -> None:
    """Makes one product, and one split, of the products that share a function of the timestep
    alone: the projections of its embedding, which every block has one of.
    """
    op = operators()
    groups = defaultdict(list)
    for node in list(_of_time(graph, timestep)):
        if node.get_type_name() == "MatMul" and (layer := _Linear.read(node)) is not None:
            groups[layer.key].append(layer)
    for layers in groups.values():
        if len(layers) < 2:
            continue
        weight = op.constant(np.concatenate([layer.weight for layer in layers]))
        if layers[0].scale is not None:
            scale = op.constant(np.concatenate([layer.scale for layer in layers]))
            weight = op.multiply(op.convert(weight, np.float32), scale)
        product = op.matmul(layers[0].source, weight, False, True)
        if layers[0].bias is not None:
            product = op.add(product, op.constant(np.concatenate([la.bias for la in layers])))
        lengths = op.constant(np.array([len(layer.weight) for layer in layers]))
        parts = op.variadic_split(product, op.constant(np.int64(-1)), lengths)
        for layer, part in zip(layers, parts.outputs(), strict=True):
            replace(layer.output, part)


def split_time(graph: Any, timestep: str) -> Any:
    """Takes what depends on the timestep alone out of a graph of static shapes, in place.

    Arguments:
        graph: An ``openvino.Model``; inputs named ``time.0`` and so on, one for each type of
            numbers, take the place of its timestep, which stays an input where it meets the
            sample.
        timestep: Name of the input that is the timestep.

    Returns:
        The model of what was taken out, from the timestep to these inputs; None, and the graph as
        it was, where there is nothing to take out or a size depends on values of the inputs.
    """
    ov, op = require("openvino", "openvino"), operators()
    for node in graph.get_ops():
        if node.get_type_name() == "ShapeOf" and (sizes := shape(node.input_value(0))) is not None:
            size = op.constant(np.array(sizes, dtype=np.int64), node.get_element_type())
            replace(node.output(0), size.output(0))
    (clock,) = (p for p in graph.get_parameters() if timestep in p.output(0).get_names())
    timed = {node.get_name(): node for node in _of_time(graph, timestep, sizes=False)}
    core = {n for n, node in timed.items() if node.get_type_name() not in _VIEWS}
    # A view of what is computed is cheaper to form again than to hand over.
    while views := {n for n, node in timed.items() if n not in core and _feeds(node, core)}:
        core |= views
    core.add(clock.get_name())
    handed = [
        (output, users)
        for node in (clock, *timed.values())
        for output in (node.outputs() if node.get_name() in core else ())
        if (
            users := [u for u in output.get_target_inputs() if u.get_node().get_name() not in core]
        )
    ]
    # The timestep itself is no output of what is split off: OpenVINO would compute in its memory.
    if any(shape(y) is None for y, _ in handed) or all(y == clock.output(0) for y, _ in handed):
        return None
    results, inputs = list[Any](), list[Any]()
    packs = defaultdict[Any, list[Any]](list)
    for output, users in handed:
        if output == clock.output(0):
            value = op.parameter(shape(output), output.get_element_type())
            value.output(0).set_names({timestep})
            inputs.append(value)
            _reconnect(users, value.output(0))
        else:
            packs[output.get_element_type().to_dtype()].append((output, users))
    for pack in packs.values():
        packed, value = _packed(pack)
        value.output(0).set_names({f"{PASSED}{len(results)}"})
        results.append(op.result(packed))
        inputs.append(value)
    graph.add_parameters(inputs)
    graph.remove_parameter(clock)
    return ov.Model(results, [clock], "time")


def _packed(values: list[tuple[Any, list[Any]]]) -> tuple[Any, Any]:
    """One vector of all values, and the input that takes its place for their users: to hand over
    sixty small tensors takes as long as a few layers.

    Arguments:
        values: Outputs of one type with their users.
    """
    op = operators()
    flat = [op.reshape(y, op.constant(np.array([-1])), False).output(0) for y, _ in values]
    sizes = [math.prod(shape(y) or ()) for y, _ in values]
    vector = op.concat(flat, 0).output(0)
    value = op.parameter([sum(sizes)], vector.get_element_type())
    parts = op.variadic_split(value, op.constant(np.int64(0)), op.constant(np.array(sizes)))
    for (output, users), part in zip(values, parts.outputs(), strict=True):
        whole = op.constant(np.array(shape(output), dtype=np.int64))
        _reconnect(users, op.reshape(part, whole, False).output(0))
    return vector, value


def _reconnect(users: list[Any], source: Any) -> None:
    for user in users:
        user.replace_source_output(source)


def _feeds(node: Any, core: set[str]) -> bool:
    """Whether nodes of these names compute from a node."""
    return any(
        user.get_node().get_name() in core
        for output in node.outputs()
        for user in output.get_target_inputs()
    )


@dataclass(frozen=True)
class _Linear:
    """A product with a constant weight ``(N, K)``, as codes and scales or as numbers, with its
    bias if that is the only thing that reads it.
    """

    source: Any
    output: Any
    weight: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any] | None
    bias: np.ndarray[Any, Any] | None

    @classmethod
    def read(cls, node: Any) -> _Linear | None:
        """The product that a MatMul is, or None if it is another."""
        about = node.get_attributes()
        if about["transpose_a"] or not about["transpose_b"]:
            return None
        source, value = node.input_values()
        scale = None
        if value.get_node().get_type_name() == "Multiply":
            codes, steps = value.get_node().input_values()
            scale = constant(steps)
            if codes.get_node().get_type_name() != "Convert" or scale is None:
                return None
            value = codes.get_node().input_value(0)
            if scale.shape != (value.get_shape()[0], 1):
                return None
        weight = constant(value)
        if weight is None or weight.ndim != 2:
            return None
        output, users = node.output(0), list(node.output(0).get_target_inputs())
        if len(users) == 1 and users[0].get_node().get_type_name() == "Add":
            bias = constant(users[0].get_node().input_value(1))
            if bias is not None and bias.size == bias.shape[-1] == len(weight):
                return cls(source, users[0].get_node().output(0), weight, scale, bias.reshape(-1))
        return cls(source, output, weight, scale, None)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for products that can be one."""
        return (
            *place(self.source), self.weight.dtype.str, self.scale is None, self.bias is None
        )  # fmt: skip


def _of_time(graph: Any, timestep: str, sizes: bool = True) -> Iterator[Any]:
    """Nodes that depend on the timestep alone, in order; of equal activations the first.

    Arguments:
        graph: The graph.
        timestep: Name of the input that is the timestep.
        sizes: Whether sizes count as constants, as in a compiled graph they are.
    """
    known: set[str] = set()
    fixed: set[str] = set()
    seen: dict[tuple[Any, ...], Any] = {}
    for node in graph.get_ordered_ops():
        name, kind = node.get_name(), node.get_type_name()
        sources = {value.get_node().get_name() for value in node.input_values()}
        if kind == "Constant" or (sizes and kind == "ShapeOf") or (sources and sources <= fixed):
            fixed.add(name)
        elif kind == "Parameter":
            if timestep in node.output(0).get_names():
                known.add(name)
        elif sources and sources <= known | fixed and kind != "Result":
            known.add(name)
            if kind == "Swish" and len(node.input_values()) == 1:
                key = place(node.input_value(0))
                if key in seen:
                    replace(node.output(0), seen[key].output(0))
                    continue
                seen[key] = node
            yield node
