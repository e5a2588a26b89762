"""Denoisers as OpenVINO graphs."""

import torch


class Plain(torch.nn.Module):
    """A diffusers model as a function of tensors to a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t):
        y = self.model(x, t)
        return getattr(y, "sample", y)


def float_graph(model, call):
    """The graph of a model for calls of the sizes of ``call``."""
    import openvino as ov

    graph = ov.convert_model(Plain(model).eval(), example_input=call)
    graph.reshape({graph.inputs[i]: list(value.shape) for i, value in enumerate(call)})
    return graph


def options(threads):
    """What docs/deploy.md compiles with, as our sessions do."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
