"""A process that runs one backend and answers over a connection.

Each backend has a process of its own, so that its peak memory is its own and a crash of its engine
ends nothing else. The process waits between calls, and the parent lets all take turns.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import BackendError, TDQError
from tdquant.files.looking import is_file
from tdquant.lab.bench.subject import float_model
from tdquant.lowering import compile
from tdquant.lowering.session import open_session
from tdquant.model_summary import summary
from tdquant.storage import load
from tdquant.support.memory import trim_heap

FLOAT, FROZEN = "float", "frozen"
"""The float model, and the frozen one in simulated arithmetic, both in eager PyTorch."""

PAUSE = 0.02
"""Seconds before a timed call, in which threads of other processes go to sleep."""


def is_exported(backend: str) -> bool:
    """Whether the name is that of a file that ``tdq.export`` wrote."""
    return Path(backend).suffix in (".xml", ".onnx") and is_file(backend)


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker runs.

    Attributes:
        backend: ``float``, ``frozen``, the name of a backend, or an exported file.
        embedded: See ``Subject``.
        folder: See ``Subject``.
        shape: Shape of one sample.
        batch: Samples in a timed call.
        threads: Threads, and processor cores that the process may use.
        device: Where the model is before it is compiled.
    """

    backend: str
    embedded: str | None
    folder: Path
    shape: tuple[int, ...]
    batch: int
    threads: int
    device: str = "cpu"


class Worker:
    """The parent's end: a process that has built its model.

    Raises:
        BackendError: The process could not build it, with the words of its error.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config), daemon=True)
        with _environment(OMP_NUM_THREADS=str(config.threads)):
            self._process.start()
        theirs.close()
        try:
            self.about: dict[str, Any] = self._answer()
        except BackendError:
            self.close()
            raise

    def seconds(self) -> float:
        """The time of one call, after an untimed one."""
        return self._ask("time")

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """The model's output."""
        return torch.from_numpy(self._ask((x.numpy(), t.numpy())))

    def memory(self) -> dict[str, float]:
        """Megabytes: ``running``, the peak since the model was built; ``building``, the peak
        before; ``bare``, the process with its packages and without a model.
        """
        return self._ask("memory")

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, question: Any) -> Any:
        with contextlib.suppress(OSError):  # the answer then says that the process ended
            self._connection.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            good, value = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise BackendError(
                f"its process ended with status {self._process.exitcode}",
                where=self.config.backend,
                why="the engine crashed, or the machine ran out of memory",
            ) from error
        if not good:
            raise BackendError(value, where=self.config.backend)
        return value


def _serve(connection: Connection, config: WorkerConfig) -> None:
    """The worker's end."""
    try:
        _limit(config.threads)
        load(config.folder)  # imports what the model needs, and is dropped
        bare = _resident()
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(config.batch, *config.shape, generator=rng, dtype=torch.float32)
        t = torch.full((config.batch,), 500, dtype=torch.long)
        began = time.perf_counter()
        model = _build(config, (x, t[0]))
        took = time.perf_counter() - began
        run = _Runner(model)
        run(x, t[0])
        building = _peak()
        _reset_peak()
        connection.send((True, {"build_seconds": took} | _about(model)))
        while True:
            question = connection.recv()
            if question == "time":
                run(x, t[0])
                time.sleep(PAUSE)
                began = time.perf_counter()
                run(x, t[0])
                answer: Any = time.perf_counter() - began
            elif question == "memory":
                answer = {"bare": bare, "building": building, "running": _peak()}
            else:
                answer = run(*map(torch.from_numpy, question)).float().numpy()
            connection.send((True, answer))
    except (EOFError, KeyboardInterrupt):
        pass  # the parent has finished
    except TDQError as error:
        connection.send((False, error.what + (f"; {error.fix}" if error.fix else "")))
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}".splitlines()[0]))


class _Runner:
    """A model's call on its own device, its result on the CPU."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
        self.device = next((p.device for p in parameters), torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        output = self.model(x.to(self.device), t.to(self.device))
        return getattr(output, "sample", output).cpu()


def _build(config: WorkerConfig, example: tuple[Tensor, Tensor]) -> Any:
    if config.backend == FLOAT:
        model = float_model(config.embedded, config.folder).to(config.device).requires_grad_(False)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if is_exported(config.backend):
        return open_session(config.backend, threads=config.threads)
    frozen = load(config.folder).to(config.device)
    if config.backend == FROZEN:
        return frozen
    return compile(frozen, config.backend, example)


def _about(model: Any) -> dict[str, Any]:
    """Which kernels run how many layers, and why this backend."""
    rows = summary(model) if isinstance(model, nn.Module) else []
    kernels = Counter(row.kernel for row in rows if row.kernel)
    return {"kernels": dict(kernels), "choice": str(getattr(model, "tdq_backend", ""))}


def _limit(threads: int) -> None:
    """Limits every engine to that many threads, by the cores that it sees."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])


def _status(key: str) -> float:
    """A line of ``/proc/self/status``, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return float(line.split()[1]) * 1024 / 1e6
    raise OSError(key)


def _resident() -> float:
    """Resident memory without freed heap, megabytes; the peak where it is unknown."""
    gc.collect()
    trim_heap()
    try:
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> float:
    """Peak resident memory since the start or the last ``_reset_peak``, megabytes."""
    try:
        return _status("VmHWM")
    except OSError:
        try:
            import resource
        except ImportError:  # Windows
            return float("nan")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _reset_peak() -> None:
    """Starts measuring the peak anew, without the heap that building left behind; on systems other
    than Linux the peak stays that of building.
    """
    _resident()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _environment(**values: str) -> Any:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
