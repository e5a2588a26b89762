"""The benchmark: backends take turns, so that disturbances affect all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.calls import record_denoiser
from tdquant.errors import BackendError
from tdquant.files.documents import write_json
from tdquant.files.looking import entries, exists
from tdquant.lab.bench.subject import Subject
from tdquant.lab.bench.worker import FLOAT, FROZEN, Worker, WorkerConfig, is_exported
from tdquant.lab.metrics.sqnr import mean_sqnr, sqnr_over_time
from tdquant.lowering.backends import ALIASES, BACKENDS
from tdquant.support.machine import machine
from tdquant.support.progress import Bar

NAN = float("nan")


@dataclass
class BenchRow:
    """The measurements of one backend.

    Attributes:
        backend: Its name.
        problem: Why it did not run, or empty.
        milliseconds: Of every timed call.
        steps: Calls that an image takes.
        batch: Images in a call.
        megabytes: Resident memory of the process: its peak ``running``, its peak ``building``,
            and ``bare``, with all packages and no model.
        disk: Size of the stored files, megabytes.
        mse: Mean squared error of the output against the float model's.
        sqnr: Mean over timesteps of the SQNR of the output, dB.
        build_seconds: Time to load and compile.
        kernels: Kernel -> number of layers.
        choice: The backend, and why.
    """

    backend: str
    problem: str = ""
    milliseconds: list[float] = field(default_factory=list)
    steps: int = 1
    batch: int = 1
    megabytes: dict[str, float] = field(default_factory=dict)
    disk: float = NAN
    mse: float = NAN
    sqnr: float = NAN
    build_seconds: float = NAN
    kernels: dict[str, int] = field(default_factory=dict)
    choice: str = ""

    @property
    def median(self) -> float:
        """Median time of a call, milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.milliseconds) < 2:
            return NAN
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def images_per_second(self) -> float:
        """Images per second, counting the denoiser only."""
        return 1000 * self.batch / (self.median * self.steps)

    def to_dict(self) -> dict[str, Any]:
        """All measurements, with medians."""
        record = asdict(self)
        if self.milliseconds:
            record["median_milliseconds"] = self.median
            record["images_per_second"] = self.images_per_second
        return record


@dataclass(frozen=True)
class BenchResult:
    """The measurements of all backends.

    Attributes:
        rows: One for each backend, in the order asked for.
        settings: The arguments.
        machine: The machine.
    """

    rows: list[BenchRow]
    settings: dict[str, Any]
    machine: dict[str, Any]

    def check(self) -> None:
        """Checks that there is a measurement of what was asked about.

        Raises:
            BackendError: No backend ran, or none but the float model; with all reasons.
        """
        asked = [row for row in self.rows if row.backend != FLOAT] or self.rows
        if all(row.problem for row in asked):
            raise BackendError(
                f"none of {len(asked)} backends ran",
                where=self.settings["model"],
                why="; ".join(f"{row.backend}: {row.problem}" for row in asked),
                fix="--backends frozen, which runs wherever torch does",
            )

    def write_json(self, path: Path) -> None:
        """Writes everything, with medians."""
        rows = [row.to_dict() for row in self.rows]
        write_json(path, {"settings": self.settings, "machine": self.machine, "rows": rows})


def run_bench(
    subject: Subject,
    backends: Sequence[str],
    *,
    batch: int = 1,
    threads: int = 1,
    steps: int = 50,
    runs: int = 20,
    checked: int = 5,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> BenchResult:
    """Measures a model on several backends. One that cannot run gets a row that says why.

    Arguments:
        subject: The model.
        backends: ``"float"``, ``"frozen"``, ``"auto"``, ``"cpu"``, registered names, or exported
            files.
        batch: Images in a timed call.
        threads: Threads of each backend.
        steps: Denoising steps of an image, for images a second.
        runs: Timed calls of each backend.
        checked: Timesteps at which outputs are compared with the float model's.
        device: Where the models are before they are compiled.
        seed: Seed of the noise that the compared calls begin with.
        progress: Draw a bar.

    Raises:
        BackendError: Unknown names; all are listed.
    """
    check_backends(backends)
    rows = {name: BenchRow(name, steps=steps, batch=batch) for name in backends}
    workers: dict[str, Worker] = {}
    bar = Bar("bench", len(rows) * (runs + 2), show=progress)

    def take_turns(act: Callable[[BenchRow, Worker], None], word: str = "") -> None:
        """Lets every worker act; one that fails takes no more turns, and its row says why."""
        for name, worker in list(workers.items()):
            try:
                act(rows[name], worker)
            except BackendError as error:
                rows[name].problem = error.what
                workers.pop(name).close()
            bar.advance(f"{name}{word}")

    try:
        exact = _Exact(subject, checked, seed)
        for name, row in rows.items():
            try:
                workers[name] = Worker(
                    WorkerConfig(
                        name,
                        subject.embedded,
                        subject.folder,
                        subject.shape,
                        batch,
                        threads,
                        device,
                    )
                )
            except BackendError as error:
                row.problem = error.what
            bar.advance(f"{name} built")
        for _ in range(runs):
            take_turns(lambda row, worker: row.milliseconds.append(1000 * worker.seconds()))
        take_turns(exact.judge, " judged")
    finally:
        bar.close()
        for worker in workers.values():
            worker.close()
    settings = {
        "model": subject.source,
        "against": subject.against,
        "shape": list(subject.shape),
        "batch": batch,
        "threads": threads,
        "steps": steps,
        "runs": runs,
        "checked": checked,
        "device": device,
        "seed": seed,
    }
    return BenchResult(list(rows.values()), settings, machine() | {"threads": threads})


def check_backends(names: Sequence[str]) -> None:
    """Checks the names of backends.

    Raises:
        BackendError: Some names are unknown, or there are none.
    """
    known = (FLOAT, FROZEN, *ALIASES, *BACKENDS)
    unknown = [name for name in names if name not in known and not is_exported(name)]
    if unknown or not names:
        raise BackendError(
            f"no backend {', '.join(map(repr, unknown))}" if unknown else "no backends",
            where="bench",
            fix=f"some of {', '.join(known)}, or .xml and .onnx files that exist",
        )


class _Exact:
    """The float model's outputs on its own trajectories."""

    def __init__(self, subject: Subject, checked: int, seed: int) -> None:
        self.folder = subject.folder
        model = subject.float_model()
        self.disk = sum(p.numel() * p.element_size() for p in model.state_dict().values()) / 1e6
        paths = record_denoiser(
            model, subject.scheduler, 4, subject.shape, steps=checked, batch=4, seed=seed + 2
        )
        self.calls = list(paths)
        with torch.no_grad():
            outputs = [model(x, t) for x, t in self.calls]
        self.outputs: list[Tensor] = [getattr(output, "sample", output) for output in outputs]

    def judge(self, row: BenchRow, worker: Worker) -> None:
        """Fills in the errors, sizes and kernels of a backend."""
        row.megabytes = worker.memory()
        row.build_seconds = worker.about["build_seconds"]
        row.kernels, row.choice = worker.about["kernels"], worker.about["choice"]
        outputs = [worker.output(x, t) for x, t in self.calls]
        pairs = zip(outputs, self.outputs, strict=True)
        row.mse = float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())
        given, exact = iter(outputs), iter(self.outputs)
        row.sqnr = mean_sqnr(
            sqnr_over_time(lambda x, t: next(given), lambda x, t: next(exact), self.calls)
        )
        row.disk = self.disk if row.backend == FLOAT else _size(row.backend, self.folder)


def _size(backend: str, folder: Path) -> float:
    """Megabytes of the files that a backend is built from."""
    files = entries(folder)
    if is_exported(backend):
        files = [f for f in (Path(backend), Path(backend).with_suffix(".bin")) if exists(f)]
    return sum(file.stat().st_size for file in files) / 1e6
