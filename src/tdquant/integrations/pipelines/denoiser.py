"""A frozen denoiser as a graph in the layout, and a session behind the call that pipelines make.

The graph is that of ``tdq.export``, tables and description inside; only its inputs change:

    added_cond_kwargs.text_embeds   ->  text_embeds
    timestep (B,)                   ->  timestep (B,) or (1,), the same for the whole batch
    hidden_states (B, 64, C)        ->  hidden_states (B, N, C), any number of tokens
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tdquant.errors import ExportError
from tdquant.integrations.pipelines.layout import (
    SEQUENCES,
    as_tensors,
    flat_name,
    flattened,
    name_input,
    part_folder,
)
from tdquant.lowering import Session, open_session
from tdquant.lowering.calls import bound
from tdquant.lowering.exporters import export
from tdquant.lowering.openvino.graph import write_sealed
from tdquant.lowering.openvino.nodes import operators
from tdquant.lowering.openvino.session import core
from tdquant.lowering.sealing import KEY, description_text, read_description

OUTPUT = "out_sample"


def write_denoiser(frozen: Any, call: Mapping[str, Any], folder: Path, flat: bool) -> None:
    """Writes a denoiser: its graph and its configuration.

    Arguments:
        frozen: A frozen denoiser of diffusers.
        call: Arguments of one call of it, by name.
        folder: Where to.
        flat: Name and shape the inputs as the layout has them. Otherwise the file is that of
            ``tdq.export``.

    Raises:
        ExportError: It cannot be traced.
    """
    config = json.loads(frozen.to_json_string())
    config.pop("quantization_config", None)  # diffusers must not look for packed codes
    with part_folder(folder, config) as file:
        if flat:
            with tempfile.TemporaryDirectory(dir=folder) as room:
                made = export(frozen, Path(room) / "denoiser.xml", as_tensors(call))
                _rewrite(made, file)
        else:
            export(frozen, file, call)


def _rewrite(source: Path, target: Path) -> None:
    """Writes an exported file anew with the inputs of the layout."""
    graph = core().read_model(str(source))
    about = read_description(str(graph.get_rt_info([KEY]).value), source)
    names = [flat_name(spec["name"]) for spec in about["inputs"]]
    if len(set(names)) < len(names):
        raise ExportError("two inputs of the denoiser would have one name", where=", ".join(names))
    for spec, name in zip(about["inputs"], names, strict=True):
        name_input(graph.input(spec["name"]), name)
        spec["name"] = name
    _broadcast(graph, about["timestep"], about["sample"])
    _free_sequences(graph, about["inputs"])
    graph.outputs[0].get_tensor().set_names({OUTPUT})
    graph.validate_nodes_and_infer_types()
    graph.set_rt_info(description_text(about), [KEY])
    write_sealed(graph, target)


def _free_sequences(graph: Any, inputs: list[dict[str, Any]]) -> None:
    """Frees the number of tokens of sequences, in the graph and in its description, if the graph
    allows other numbers than the example's.
    """
    free = []
    for spec in inputs:
        axis, shape = SEQUENCES.get(spec["name"]), list(spec["shape"])
        if axis is not None and len(shape) in (axis + 1, axis + 2):  # SD3's are pictures
            shape[axis] = None
        free.append(shape)
    try:
        graph.reshape(
            {
                spec["name"]: [-1 if n is None else n for n in shape]
                for spec, shape in zip(inputs, free, strict=True)
            }
        )
    except RuntimeError:
        return
    for spec, shape in zip(inputs, free, strict=True):
        spec["shape"] = shape


def _broadcast(graph: Any, timestep: str, sample: str) -> None:
    """Repeats the timestep over the batch, where there is one for all samples."""
    op = operators()
    time = graph.input(timestep).get_node().output(0)
    users = time.get_target_inputs()
    first = np.array([0], np.int64)
    batch = op.gather(op.shape_of(graph.input(sample)), op.constant(first), op.constant(first[0]))
    each = op.broadcast(time, batch)
    for user in users:
        user.replace_source_output(each.output(0))


class PipelineSession(Session):
    """A session of a denoiser in the layout, with the call of the diffusers model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = bound(self.about["parameters"], args, kwargs)
        as_tuple = {"return_dict": given["return_dict"]} if "return_dict" in given else {}
        return super().forward(**flattened(given), **as_tuple)


def open_denoiser(file: Path, threads: int | None, device: str) -> nn.Module:
    """A session that takes the call of the denoiser that the file holds.

    Raises:
        ExportError: The file is missing, damaged, or not from ``tdq.export_pipeline``.
    """
    session = open_session(file, threads, device)
    return PipelineSession(session.about, session.engine, session.name)
