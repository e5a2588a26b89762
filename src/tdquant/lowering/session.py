"""Sessions: an exported file, or a graph in memory, behind the call of the model that it holds.

    session = tdq.open_session("model.xml")
    y = session(x, t)

Samplers, metrics and pipelines take it for the denoiser. It looks at nothing but the description
in the file.
"""

from __future__ import annotations

import inspect
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tdquant.clock import outside_message
from tdquant.errors import BackendError, ClockError, ExportError
from tdquant.files.looking import is_file
from tdquant.lowering.agreement import require_agreement
from tdquant.lowering.calls import bound, flat_times
from tdquant.lowering.nests import Output, leaves
from tdquant.lowering.slot import OnEngine, described
from tdquant.model_summary import Row
from tdquant.support.registry import registrar


class Engine(Protocol):
    """A graph that is ready to run. Several threads may call it at once."""

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]: ...


Open = Callable[[Path, int, str], tuple[dict[str, Any], Engine]]

ENGINES: dict[str, Open] = {}
"""Suffix of a file -> function of its path, a number of threads and a device to its description
and the engine that runs it.
"""


register_engine = registrar(ENGINES)
"""``@register_engine(".suffix")`` registers an ``Open``."""


class NotPickled:
    """Base of what holds an engine, which cannot be copied or saved."""

    def __reduce__(self) -> Any:
        raise BackendError(
            "a model on an engine cannot be copied or pickled",
            where=type(self).__name__,
            why="the engine holds it, compiled for this machine and process",
            fix="tdq.save the frozen model and compile it, or open the exported file, where it is "
            "to run",
        )


class Session(NotPickled, OnEngine):
    """``session(x, t, ...)``, with the arguments and the result of the exported model.

    Arguments:
        about: The description in the file.
        engine: What runs the graph.
        name: The file, for errors.

    Attributes:
        config: Configuration of the exported model, by key and by attribute.
        about: The whole description in the file.
    """

    def __init__(self, about: dict[str, Any], engine: Engine, name: str = "") -> None:
        super().__init__(about)
        self.about, self.engine, self.name = about, engine, name
        self.rows = [Row(**row) for row in about.get("rows", [])]
        self._inputs = {spec["name"]: spec for spec in about["inputs"]}
        self._warned = False
        self._process = os.getpid()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The exported model's output.

        Raises:
            ExportError: Arguments that the graph does not have, or shapes that it cannot take.
            ClockError: No timestep, or neither one nor one for each sample.
            BackendError: The process was forked since the session was opened.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "the session was opened before this process was forked",
                where=self._signature(),
                why="threads of the engine do not survive a fork: it would wait for them forever",
                fix='start processes by "spawn", or open the first session behind the fork',
            )
        about, output = self.about, self.about["output"]
        given = bound(about["parameters"], args, kwargs)
        as_tuple = output["kind"] == "tuple" or not given.pop("return_dict", True)
        found = {name: leaf for key, value in given.items() for name, leaf in leaves(key, value)}
        if found.get(about["timestep"]) is None:
            raise ClockError(
                f"the session was called without {about['timestep']!r}",
                where=self._signature(),
                fix=f"pass the timestep by position or as {about['timestep']}=",
            )
        self._check(found)
        sample = found[about["sample"]]
        tensors = {
            name: torch.as_tensor(found[name], dtype=getattr(torch, spec["dtype"]), device="cpu")
            for name, spec in self._inputs.items()
            if name != about["timestep"]
        }
        tensors[about["timestep"]] = self._timesteps(found[about["timestep"]], len(sample))
        parts = [
            part.to(sample.device, sample.dtype) if part.is_floating_point() else part
            for part in self.engine({name: tensors[name] for name in self._inputs})
        ]
        if output["kind"] == "tensor":
            return parts[0]
        if as_tuple:
            return tuple(parts)
        return Output(zip(output["keys"], parts, strict=True))

    def _check(self, found: dict[str, Any]) -> None:
        """Raises for arguments that the graph does not take as they are; names them all."""
        constants = self.about["constants"]
        mistakes = []
        for name, value in found.items():
            if name not in self._inputs and name not in constants and value is not None:
                mistakes.append(f"{name} was not in the example that the model was exported with")
            elif name in constants and value != constants[name]:
                mistakes.append(f"{name}={value!r}: exported with {constants[name]!r}")
        for name, value in constants.items():
            # Flags say what is returned; numbers are part of what is computed.
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in found and number:
                mistakes.append(f"{name} left out: exported with {value!r}")
        for name, spec in self._inputs.items():
            if name not in found:
                mistakes.append(f"{name} is missing")
                continue
            shape = tuple(torch.as_tensor(found[name]).shape)
            if 0 in shape:
                mistakes.append(f"{name} is empty")  # some engines end the process
            elif name != self.about["timestep"] and not _fits(shape, spec["shape"]):
                free = ", ".join("*" if n is None else str(n) for n in spec["shape"])
                mistakes.append(f"{name} has shape {shape}, not ({free})")
        if mistakes:
            raise ExportError(
                "the graph cannot take this call:\n  - " + "\n  - ".join(mistakes),
                where=self._signature(),
                fix="export again with an example of such a call",
            )

    def _timesteps(self, timestep: Any, batch: int) -> Tensor:
        """One timestep for each sample, as the graph takes them."""
        spec = self._inputs[self.about["timestep"]]
        time = flat_times(timestep)
        if len(time) not in (1, batch):
            raise ClockError(
                f"{len(time)} timesteps for a batch of {batch}",
                where=self._signature(),
                why="there is one timestep for the whole batch or one for each sample",
            )
        if self.about.get("one_time") and bool((time != time[0]).any()):
            raise ClockError(
                f"{len(time)} different timesteps",
                where=self._signature(),
                why="which rows of an activation belong to which sample is not known",
                fix="samples that share their timestep, or static scales: Recipe(overrides=...)",
            )
        coverage = self.about.get("coverage")
        if not self._warned:
            message = outside_message(time, coverage, self.about.get("seen"))
            if message:
                self._warned = True
                warnings.warn(message, stacklevel=2)
        dtype = getattr(torch, spec["dtype"])
        if (
            not dtype.is_floating_point
            and time.is_floating_point()
            and (time != time.round()).any()
        ):
            raise ExportError(
                f"timestep {float(time[0]):g}, where the graph takes whole numbers",
                where=self._signature(),
                fix="export with a floating-point timestep in the example",
            )
        return time.to(dtype).expand(batch).contiguous()

    def _signature(self) -> str:
        call = ", ".join(self.about["parameters"])
        return f"{self.name or self.about.get('model', 'session')}({call})"

    def extra_repr(self) -> str:
        return f"{self.about.get('model', '')}, {self.about.get('summary', '')}"


def _fits(shape: tuple[int, ...], wanted: list[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        w is None or w == n for n, w in zip(shape, wanted, strict=True)
    )


def open_session(
    path: str | os.PathLike[str], threads: int | None = None, device: str = "CPU"
) -> Session:
    """Opens a file that ``tdq.export`` wrote, for running it.

    Any number of threads may share a session. It compiles the graph for each shape of inputs that
    it meets, and keeps the latest few.

    Arguments:
        path: The file, ``.xml`` or ``.onnx``.
        threads: Threads of one call; None takes ``torch.get_num_threads()``.
        device: OpenVINO's name of the device. ONNX Runtime runs on the CPU.

    Raises:
        ExportError: The file is missing, damaged, or not from ``tdq.export``.
        MissingDependencyError: The engine's package is not installed.
    """
    file = Path(path)
    if file.suffix not in ENGINES:
        raise ExportError(
            f"no engine runs {file.suffix or 'files without suffix'!r}",
            where=str(file),
            fix=f"a file of {', '.join(sorted(ENGINES))} that tdq.export wrote",
        )
    if not is_file(file):
        raise ExportError("there is no such file", where=str(file), fix="check the path")
    about, engine = ENGINES[file.suffix](file, threads or torch.get_num_threads(), device)
    return Session(about, engine, str(file))


class ExportedModel(NotPickled, OnEngine):
    """A frozen model that becomes a session at its first call, whose arguments are the example.

    Arguments:
        frozen: The model.
        make: From it and an example to a session.
        engine: Name of the engine, for errors.

    Attributes:
        session: What runs the model; None before the first call.
        check: Whether the first call is compared with the frozen model's.
        fall_back: From the error of a first call and its arguments to another model and its
            output, or to that error again; None to raise it.
    """

    def __init__(
        self, frozen: nn.Module, make: Callable[[nn.Module, Any], Session], engine: str
    ) -> None:
        super().__init__({"model": type(frozen).__name__, **described(frozen)})
        # Not as a child: its parameters and rows are not those of what runs.
        self._source: tuple[nn.Module, ...] = (frozen,)
        self._make, self._lock, self._ran = make, threading.RLock(), False
        self.session: nn.Module | None = None
        self.engine, self.check = engine, True
        self.fall_back: Callable[..., tuple[nn.Module, Any]] | None = None

    def prepare(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The session, made from an example call if there is none yet."""
        with self._lock:
            if self.session is None:
                (frozen,) = self._source
                parameters = list(inspect.signature(frozen.forward).parameters)
                self.session = self._make(frozen, bound(parameters, args, kwargs))
            return self.session

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self._ran:
            with self._lock:
                if not self._ran:
                    return self._first(args, kwargs)
        assert self.session is not None
        return self.session(*args, **kwargs)

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            session = self.prepare(*args, **kwargs)
            output = session(*args, **kwargs)
            if self.check:
                (frozen,) = self._source
                require_agreement(session, output, frozen, args, kwargs, self.engine, BackendError)
        except Exception as error:
            if self.fall_back is None:
                raise
            self.session, output = self.fall_back(error, args, kwargs)
        self._ran, self._source, self.fall_back = True, (), None
        return output
