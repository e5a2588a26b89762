r"""Batch sizes that a model read in Python.

``len(x)`` and ``int(x.shape[0])`` are plain numbers in a trace, so that its graph takes no other
batch than the one that was traced. Such a model is traced again with another batch. Whole
numbers in which the two graphs differ depend on it; each is taken to be linear,

    c(B) = c(B_1) + (B - B_1) (c(B_2) - c(B_1)) / (B_2 - B_1)

and is computed from the shape of the sample instead. So are the sizes of tensors that repeat the
same for every sample. Whatever else a model computes from its batch keeps the graph to that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdquant.lowering.calls import BATCH, Call
from tdquant.lowering.openvino.nodes import constant, operators, replace


def free_batch(graph: Any, call: Call, trace: Callable[[int], Any]) -> None:
    """Has a graph take any batch, in place, if it is only constants that keep it from that.

    Arguments:
        graph: An ``openvino.Model``, as it was traced.
        call: The call that was traced, with BATCH samples.
        trace: Traces the call with another number of samples.
    """
    if _takes(graph, _shapes(call, BATCH + 1)):
        return
    try:
        other = trace(BATCH + 1)
    except Exception:  # other arguments, such as lists of sizes, are of as many samples
        return
    pairs = list(zip(graph.get_ordered_ops(), other.get_ordered_ops(), strict=False))
    same = len(graph.get_ops()) == len(other.get_ops())
    if not same or any(a.get_type_name() != b.get_type_name() for a, b in pairs):
        return
    op = operators()
    port = next(port for port in graph.inputs if call.sample in port.get_names())
    batch = op.gather(op.shape_of(port), op.constant(np.int64(0)), op.constant(np.int64(0)))
    for node, counterpart in pairs:
        first, second = constant(node.output(0)), constant(counterpart.output(0))
        if first is None or second is None or _equal(first, second):
            continue
        if first.shape == second.shape and np.issubdtype(first.dtype, np.integer):
            found = op.convert(_linear(first, second, batch), first.dtype.type)
        elif (part := _repeated(first, second)) is not None:
            sizes = _linear(np.array(first.shape), np.array(second.shape), batch)
            found = op.broadcast(op.constant(part), sizes)
        else:
            continue
        replace(node.output(0), found.output(0))
    graph.validate_nodes_and_infer_types()


def _equal(first: Any, second: Any) -> bool:
    return bool(first.shape == second.shape and np.array_equal(first, second, equal_nan=True))


def _repeated(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any] | None:
    """What two tensors repeat along the dimensions in which their sizes differ, if they do."""
    if first.ndim != second.ndim:
        return None
    sizes = zip(first.shape, second.shape, strict=True)
    part = first[tuple(slice(None if a == b else 1) for a, b in sizes)]
    same = (np.array_equal(np.broadcast_to(part, whole.shape), whole) for whole in (first, second))
    return part if all(same) else None


def _linear(first: NDArray[Any], second: NDArray[Any], batch: Any) -> Any:
    """Whole numbers at any batch from those at BATCH and at one more."""
    op, slope = operators(), second.astype(np.int64) - first
    least = op.constant(first.astype(np.int64) - BATCH * slope)
    return op.add(least, op.multiply(op.constant(slope), batch))


def _shapes(call: Call, batch: int) -> dict[str, list[int]]:
    """Shapes of the inputs with another batch."""
    return {
        name: [batch if name in call.batched and i == 0 else n for i, n in enumerate(t.shape)]
        for name, t in call.tensors.items()
    }


def _takes(graph: Any, shapes: Mapping[str, list[int]]) -> bool:
    """Whether a graph fits inputs of these shapes."""
    try:
        graph.clone().reshape(dict(shapes))
    except RuntimeError:
        return False
    return True
