"""ONNX Runtime: runs exported graphs on the CPU.

It is no backend of ``compile``: torch's exporter takes a minute for a UNet of 36M parameters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.errors import ExportError
from tdquant.lowering.calls import engine_errors
from tdquant.lowering.onnx import exporter as graphs
from tdquant.lowering.sealing import CONSTANTS, KEY, check_seal, read_description
from tdquant.lowering.session import register_engine
from tdquant.support.machine import saturates_here
from tdquant.support.optional import require

ERRORS_ONLY = 3


class ONNXEngine:
    """Runs one ONNX graph, of any shapes.

    Arguments:
        graph: The file.
        threads: Threads of one call.
        name: The file, for errors.
    """

    def __init__(self, graph: Path, threads: int, name: str = "") -> None:
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        # Threads that spin between calls take the cores from whatever else samples.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if saturates_here():
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._name = name
        with engine_errors(
            "ONNX Runtime cannot read the graph", name, "update onnxruntime, or export again"
        ):
            self._session = runtime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )

    @property
    def description(self) -> str | None:
        """The text that ``export`` left in the file."""
        return self._session.get_modelmeta().custom_metadata_map.get(KEY)

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        with engine_errors(
            "ONNX Runtime cannot run the graph",
            f"{self._name} with {shapes}",
            "sizes that the model itself takes",
        ):
            return [torch.from_numpy(found) for found in self._session.run(None, arrays)]


@register_engine(".onnx")
def open_onnx(path: Path, threads: int, device: str) -> tuple[dict[str, Any], ONNXEngine]:
    """The description and the engine of an ``.onnx`` file."""
    require("onnxruntime", "onnx")
    if device != "CPU":
        raise ExportError(
            f"device {device!r}",
            where=str(path),
            why="sessions run ONNX Runtime on the CPU",
            fix='device="CPU"; onnxruntime itself runs the file elsewhere',
        )
    beside = graphs.companions(path)
    try:
        check_seal(path, beside)
    except ExportError as error:
        if isinstance(error.__cause__, OSError):
            raise
        wanted = re.search(
            rb"location\x12.([ -~]+)" + re.escape(CONSTANTS.encode()), path.read_bytes()
        )
        if beside or wanted is None:
            raise
        raise ExportError(
            f"{wanted[1].decode()}{CONSTANTS} is not beside it",
            where=str(path),
            why="the constants of a large graph are in a file of their own",
            fix="keep the two together, under the names that they were exported with",
        ) from error
    engine = ONNXEngine(path, threads, str(path))
    return read_description(engine.description, path), engine
