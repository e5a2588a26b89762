"""OpenVINO graphs that run, and what of them is quantized."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from benchmarks.graphs import options
from torch import Tensor

KINDS = ("Convolution", "FullyConnected", "MatMul")
"""Layers of a compiled graph that multiply."""


class OnOpenVINO:
    """A graph, compiled anew for each number of samples, with the options of docs/deploy.md."""

    def __init__(self, graph: Any, threads: int) -> None:
        self.graph, self.threads = graph, threads
        self.compiled: dict[int, Any] = {}

    def of(self, x: Tensor) -> Any:
        """The graph compiled for inputs like ``x``, and a request of it."""
        import openvino as ov

        if len(x) not in self.compiled:
            graph = self.graph.clone()
            graph.reshape({0: list(x.shape), 1: [len(x)]})
            compiled = ov.Core().compile_model(graph, "CPU", options(self.threads))
            self.compiled[len(x)] = compiled, compiled.create_infer_request()
        return self.compiled[len(x)]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        _, request = self.of(x)
        times = t.reshape(-1).expand(len(x)).contiguous()
        values = [x.contiguous().numpy(), times.numpy()]
        found = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(np.array(found[0]))

    def products(self, x: Tensor) -> tuple[int, int]:
        """How many products run on int8, and how many there are."""
        compiled, _ = self.of(x)
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        kernels = [
            info["primitiveType"].astype(str)
            for info in infos
            if info["layerType"].astype(str) in KINDS
        ]
        return sum("I8" in kernel.upper() for kernel in kernels), len(kernels)


def quantized_share(graph: Any) -> float:
    """Share of the multiplications by constant weights whose inputs are quantized."""
    few = total = 0
    for op in graph.get_ops():
        kind = op.get_type_name()
        if kind not in OUTER or not _above(op, 1, "Constant"):
            continue  # no product, or one of two activations
        outputs, weight = _of_one(op.output(0)), list(op.input(1).get_shape())
        inner = (
            math.prod(weight[OUTER[kind] :]) if OUTER[kind] else math.prod(weight) // outputs[-1]
        )
        macs = math.prod(outputs) * inner
        total += macs
        few += macs * _above(op, 0, "FakeQuantize")
    return few / total


def _of_one(port: Any) -> list[int]:
    """A shape for one sample, where their number is free."""
    return [size.get_length() if size.is_static else 1 for size in port.get_partial_shape()]


OUTER = {"Convolution": 1, "GroupConvolution": 2, "MatMul": 0}
"""Dimensions of a weight that are no sum's; a matrix may be transposed."""

THROUGH = ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose", "Unsqueeze")


def _above(op: Any, place: int, kind: str) -> bool:
    """Whether an input comes from a node of a kind, by way of operations that only move it."""
    node = op.input_value(place).get_node()
    while node.get_type_name() != kind:
        if node.get_type_name() not in THROUGH:
            return False
        node = node.input_value(0).get_node()
    return True
