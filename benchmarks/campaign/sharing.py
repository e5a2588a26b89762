"""Eight threads on one model of every engine; 200 shapes through one session."""

import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from benchmarks.campaign.formats import frozen_tiny

import tdquant as tdq

THREADS, CALLS = 8, 6


def threads():
    """Engine -> whether every thread got what one thread gets, bit for bit."""
    table, failures = {}, []
    frozen = frozen_tiny(scale="temporal")
    example = torch.randn(2, 3, 16, 16), torch.tensor([5, 700])
    with tempfile.TemporaryDirectory() as folder:
        subjects = {"fake-quantized": frozen}
        for backend in ("reference", "onednn", "openvino"):
            subjects[backend] = tdq.compile(frozen, backend=backend)
        for suffix in (".xml", ".onnx"):
            file = Path(folder) / f"model{suffix}"
            tdq.export(frozen, file, example=example)
            subjects[f"session of {suffix}"] = tdq.open_session(file, threads=1)
        for name, model in subjects.items():
            mistakes = _disagreements(model)
            table[name] = {"calls": THREADS * CALLS, "different": len(mistakes)}
            failures += [{"engine": name, "why": mistake} for mistake in mistakes]
    return {"table": table, "failures": failures}


def _disagreements(model):
    rng = torch.Generator().manual_seed(0)
    inputs = [
        [(torch.randn(2, 3, 16, 16, generator=rng), torch.tensor([97 * i + n, 3 * n]))
         for n in range(CALLS)] for i in range(THREADS)
    ]  # fmt: skip
    with torch.no_grad():
        wanted = [[model(*call) for call in calls] for calls in inputs]
    mistakes, together = [], threading.Barrier(THREADS)

    def work(i):
        together.wait()
        for n, call in enumerate(inputs[i]):
            try:
                with torch.no_grad():
                    if not torch.equal(model(*call), wanted[i][n]):
                        mistakes.append(f"thread {i}, call {n}: another result")
            except Exception as error:
                mistakes.append(f"thread {i}, call {n}: {type(error).__name__}: {error}")

    running = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return mistakes


def shapes(count=200, bound=64):
    """Resident memory of a session that meets one shape after another.

    Arguments:
        count: Shapes, twice each.
        bound: Megabytes that the second half may grow by.
    """
    table, failures = {}, []
    frozen = frozen_tiny(scale="static")
    process, sizes = (
        psutil.Process(),
        [(8 + 4 * (i % 20), 8 + 4 * (i // 20)) for i in range(count)],
    )
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".xml", ".onnx"):
            file = Path(folder) / f"model{suffix}"
            tdq.export(frozen, file, example=(torch.randn(1, 3, 16, 16), torch.tensor([5])))
            session = tdq.open_session(file, threads=1)
            began, resident = time.perf_counter(), []
            for height, width in sizes:
                for t in (10, 900):
                    y = session(torch.randn(1, 3, height, width), torch.tensor([t]))
                    assert y.shape[2:] == (height, width)
                resident.append(process.memory_info().rss / 2**20)
            later = max(resident[count // 2 :]) - max(resident[: count // 2])
            table[suffix] = {
                "shapes": count,
                "megabytes_first_half": round(max(resident[: count // 2]) - resident[0]),
                "megabytes_second_half": round(later),
                "seconds": round(time.perf_counter() - began, 1),
            }
            if later > bound:
                failures.append({"session": suffix, "why": f"{later:.0f} MB more"})
    return {"table": table, "failures": failures}
