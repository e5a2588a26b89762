"""OpenVINO: runs exported graphs, and is the backend ``"openvino"``.

The graph is compiled for the very shapes of a call, which lets OpenVINO plan memory and fold what
depends on them; the latest few are kept. Arithmetic is float32 and int8 on every machine: what the
engine chooses by itself, bfloat16 with AMX and rounded inputs of layers whose weights alone have
few bits with VNNI, would not be exact.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdquant.errors import BackendError, ExportError
from tdquant.files.looking import is_file
from tdquant.lowering.backends import Example, register_backend
from tdquant.lowering.calls import engine_errors
from tdquant.lowering.exporters import write_graph
from tdquant.lowering.openvino.graph import EXACT, avoid_saturation, mark_float
from tdquant.lowering.openvino.passes import decompose_norms
from tdquant.lowering.openvino.time import PASSED, split_time
from tdquant.lowering.sealing import KEY, check_seal, read_description
from tdquant.lowering.session import ExportedModel, Session, open_session, register_engine
from tdquant.support.machine import saturates_here
from tdquant.support.memory import paging_out
from tdquant.support.optional import require

KEPT = 4
"""Shapes of inputs whose compiled graphs are kept."""

PAGED_OUT = 2**16
"""Bytes of a constant from which on its memory is worth giving back."""

TIMES_KEPT = 2**25
"""Bytes of what depends on the timestep alone that a compiled graph keeps."""


@functools.cache
def core() -> Any:
    """OpenVINO's devices, opened once a process."""
    return require("openvino", "openvino").Core()


class _Requests:
    """A compiled graph, with the requests that are free to run it."""

    def __init__(self, model: Any) -> None:
        self._ov = require("openvino", "openvino")
        self.model, self._free, self._lock = model, list[Any](), threading.Lock()
        self._outputs = [
            (tuple(port.shape), port.element_type.to_dtype()) for port in model.outputs
        ]

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        with self._lock:
            request = self._free.pop() if self._free else self.model.create_infer_request()
        found = [torch.from_numpy(np.empty(shape, dtype)) for shape, dtype in self._outputs]
        for name, tensor in inputs.items():  # copied: OpenVINO computes in place on some of them
            request.set_tensor(name, self._ov.Tensor(tensor.numpy()))
        for index, tensor in enumerate(found):
            shared = self._ov.Tensor(tensor.numpy(), shared_memory=True)
            request.set_output_tensor(index, shared)
        request.infer()
        with self._lock:
            self._free.append(request)
        return found


class _Compiled:
    """A graph compiled for one set of shapes. What depends on the timestep alone is a part of its
    own, computed once a timestep; the latest of it is kept.

    Arguments:
        rest: All else, or the whole graph.
        time: The part from the timestep to what the rest takes of it.
        timestep: Name of the timestep.
    """

    def __init__(
        self, rest: _Requests, time: _Requests | None = None, *, timestep: str | None = None
    ) -> None:
        self.rest, self.time, self._timestep = rest, time, timestep
        # A port may have more names than the one that it was given.
        names = [name for port in rest.model.inputs for name in port.get_names()]
        self._names = [name for name in names if name.startswith(PASSED)]
        self._direct = timestep in names
        self._known: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        if self.time is None or self._timestep is None:
            return self.rest(inputs)
        rest = {n: x for n, x in inputs.items() if n != self._timestep or self._direct}
        return self.rest(rest | self._of_time(self.time, inputs[self._timestep]))

    def _of_time(self, time: _Requests, timestep: Tensor) -> dict[str, Tensor]:
        key = timestep.numpy().tobytes()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = dict(zip(self._names, time({str(self._timestep): timestep}), strict=True))
        size = sum(tensor.nbytes for tensor in found.values())
        with self._lock:
            self._known[key] = found
            while len(self._known) > max(1, TIMES_KEPT // max(1, size)):
                self._known.popitem(last=False)
        return found


class OpenVINOEngine:
    """Runs one OpenVINO graph.

    Arguments:
        graph: An ``openvino.Model`` with named inputs.
        threads: Threads of one call.
        device: OpenVINO's name of the device.
        name: The file, for errors.
        timestep: Name of the input that is the timestep, if one is.

    Attributes:
        in_float: Paths of layers whose integer products would saturate on this machine.
    """

    def __init__(
        self,
        graph: Any,
        threads: int,
        device: str = "CPU",
        name: str = "",
        timestep: str | None = None,
    ) -> None:
        self._core, self._timestep = core(), timestep
        self._graph, self._device, self._name = graph, device, name
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            self._options |= {"INFERENCE_NUM_THREADS": str(threads), **EXACT}
        self._compiled: OrderedDict[tuple[Any, ...], _Compiled] = OrderedDict()
        self._lock = threading.Lock()
        decompose_norms(graph)  # of files from elsewhere
        self.in_float = avoid_saturation(graph) if device == "CPU" and saturates_here() else []
        self._constants = [
            (node.get_data().ctypes.data, node.get_byte_size())
            for node in graph.get_ops()
            if node.get_type_name() == "Constant" and node.get_byte_size() >= PAGED_OUT
        ]

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        tensors = {name: tensor.contiguous() for name, tensor in inputs.items()}
        compiled = self.compiled({name: tuple(t.shape) for name, t in tensors.items()})
        try:
            return compiled(tensors)
        except RuntimeError as error:
            raise BackendError(
                "OpenVINO failed while it ran the graph",
                where=self._called(tensors),
                why=str(error).strip().splitlines()[-1] if str(error).strip() else "",
                fix='more memory, or tdq.compile(frozen, backend="onednn")',
            ) from error

    def _called(self, tensors: Mapping[str, Tensor]) -> str:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        return f"{self._name} with {shapes}"

    def compiled(self, shapes: dict[str, tuple[int, ...]]) -> _Compiled:
        """The graph compiled for inputs of these shapes.

        Raises:
            ExportError: The graph has none for them.
        """
        key = tuple(shapes.items())
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
            graph = self._graph.clone()
            try:
                graph.reshape({name: list(shape) for name, shape in shapes.items()})
                time = self._timestep and split_time(graph, self._timestep)
                with paging_out(self._constants):  # the engine packs weights of its own
                    parts = [self._compile(part) for part in (graph, time) if part]
                found = _Compiled(parts[0], *parts[1:], timestep=self._timestep)
            except RuntimeError as error:
                raise ExportError(
                    f"OpenVINO cannot run the graph on {self._device}",
                    where=f"{self._name} with "
                    + ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
                    why=str(error).strip().splitlines()[-1],
                    fix="sizes that the model itself takes; device= one of "
                    + ", ".join(self._core.available_devices),
                ) from error
            self._compiled[key] = found
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return found

    def _compile(self, graph: Any) -> _Requests:
        return _Requests(self._core.compile_model(graph, self._device, self._options))


@register_engine(".xml")
def open_xml(path: Path, threads: int, device: str) -> tuple[dict[str, Any], OpenVINOEngine]:
    """The description and the engine of an ``.xml`` file with its ``.bin``."""
    require("openvino", "openvino")
    constants = path.with_suffix(".bin")
    if not is_file(constants):
        raise ExportError(
            f"no {constants.name} beside it",
            where=str(path),
            why="an .xml file keeps its constants in a .bin of the same name",
            fix="keep the two together",
        )
    check_seal(path, [constants])
    with engine_errors(
        "OpenVINO cannot read the graph",
        str(path),
        "update openvino, or export again",
        last=True,
        kinds=(RuntimeError,),
    ):
        graph = core().read_model(str(path))
    about = read_description(str(graph.get_rt_info([KEY]).value), path)
    engine = OpenVINOEngine(graph, threads, device, str(path), about["timestep"])
    if engine.in_float:
        mark_float(about.get("rows", []), engine.in_float)
        warnings.warn(
            f"{len(engine.in_float)} layers of {path} run in float here: without VNNI the "
            "sums of their 8-bit products saturate. Weights of 7 bits run on integers",
            stacklevel=3,
        )
    return about, engine


@register_backend("openvino")
def lower(frozen: nn.Module, example: Example | None = None) -> ExportedModel:
    """The model as an OpenVINO graph, made at the first call."""
    require("openvino", "openvino")
    return ExportedModel(frozen, _session, "OpenVINO")


def _session(frozen: nn.Module, example: Any) -> Session:
    # Through a file: a graph that OpenVINO has just traced keeps what it inferred for the
    # example's shapes, and gave wrong results for input-dynamic scales.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "model.xml"
        write_graph(frozen, file, example)
        return open_session(file)
