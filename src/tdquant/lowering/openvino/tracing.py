"""Turning a PyTorch module into an OpenVINO graph.

``openvino.convert_model`` does the same, and reports each conversion to Google Analytics unless
its user has opted out: dozens of forks of a process that runs threads, which wait for the
network when it ends. So its PyTorch frontend is called directly.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.lowering.openvino.views import FreshViews
from tdquant.support.memory import trim_heap
from tdquant.support.optional import require


def trace(module: nn.Module, inputs: Sequence[Tensor], extensions: Sequence[Any] = ()) -> Any:
    """Trace one call of a module.

    Args:
        module: What to trace.
        inputs: Its positional arguments. The graph has their dtypes and free shapes.
        extensions: Conversions of custom operators.
    """
    ov = require("openvino", "openvino")
    frontends = require("openvino.frontend", "openvino")
    decoders = require("openvino.frontend.pytorch.ts_decoder", "openvino")
    transformations = require("openvino._offline_transformations", "openvino")
    cleanup = require("openvino.tools.ovc.moc_frontend.offline_transformations", "openvino")
    frontend = frontends.FrontEndManager().load_by_framework("pytorch")
    for extension in extensions:
        frontend.add_extension(extension)
    with torch.no_grad(), quiet_tracing(), FreshViews():
        # Traced once: to compare a second time takes as long again, and finds differences in
        # what the model keeps between calls.
        decoder = decoders.TorchScriptPythonDecoder(
            module, example_input=tuple(inputs), trace_kwargs={"check_trace": False}
        )
        trim_heap()  # of the trace
        model = frontend.load(decoder, True)  # with the weights shared
        for index, tensor in enumerate(inputs):
            place = model.get_place_by_input_index(index)
            model.set_element_type(place, ov.Type(tensor.numpy().dtype))
        graph = frontend.convert(model)
    transformations.apply_moc_transformations(graph, cf=False, smart_reshape=True)
    transformations.compress_quantize_weights_transformation(graph)
    cleanup.apply_fused_names_cleanup(graph)
    return graph


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Hide the warnings and prints of tracing, which warns of every shape that Python reads."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
