"""A call in a process of its own: what an engine breaks does not break the run."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class EndedError(RuntimeError):
    """A process that ended without an answer."""


def apart(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    """What ``function(*args)`` returns in a fork that computes with so many threads. Whoever forks
    must compute with one: a second thread of OpenMP does not survive it.

    Raises:
        EndedError: By a signal, such as SIGSEGV of an engine, or by an error that was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result"

        def child() -> None:
            torch.set_num_threads(threads)
            file.write_bytes(pickle.dumps(function(*args)))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        code = process.exitcode or 0
        if code < 0:
            raise EndedError(f"ended by {signal.Signals(-code).name}")
        if code:
            raise EndedError(f"ended with {code}")
        return pickle.loads(file.read_bytes())
