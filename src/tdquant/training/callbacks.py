"""What a run tells while it trains: a bar, a log, TensorBoard, pictures.

A callback is called by the main process alone unless it asks for all. ``Run`` is what it may look
at.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tdquant.diffusion.pictures import grid, save_png
from tdquant.errors import ModelError
from tdquant.files.documents import json_safe
from tdquant.files.looking import exists
from tdquant.files.writing import replacing
from tdquant.support.optional import require
from tdquant.support.progress import Bar


@dataclass
class Run:
    """A run in progress.

    Attributes:
        model: The model that learns, without what distributes it.
        averaged: Gives a copy of it with the moving averages.
        step: Steps done.
        steps: Steps to do in all.
        seconds: Time spent, over all restarts.
        out: Folder of the run, or None.
        main: Whether this is the main process.
    """

    model: nn.Module
    averaged: Callable[[], nn.Module]
    step: int
    steps: int
    seconds: float
    out: Path | None
    main: bool = True


class Callback:
    """Does nothing; subclasses override what they need."""

    everywhere: ClassVar[bool] = False
    """Whether every process calls it, as it must if it asks for the averaged model."""

    def start(self, run: Run) -> None:
        """Before the first step."""

    def after_step(self, run: Run, record: dict[str, float]) -> None:
        """After each step, with ``loss``, its parts, ``rate`` and ``norm`` of the gradient."""

    def end(self, run: Run) -> None:
        """After the last step, or when the run was stopped or failed."""


class ShowProgress(Callback):
    """A progress bar with the loss, smoothed over about 20 steps, and the time left."""

    def __init__(self, label: str = "training") -> None:
        self.label, self._loss = label, 0.0

    def start(self, run: Run) -> None:
        self._bar = Bar(self.label, run.steps, run.step)

    def after_step(self, run: Run, record: dict[str, float]) -> None:
        loss = record["loss"]
        self._loss = loss if not self._loss else 0.95 * self._loss + 0.05 * loss
        self._bar.advance(f"loss {self._loss:.4g}")

    def end(self, run: Run) -> None:
        self._bar.close()


class JsonLog(Callback):
    """``RUN/log.jsonl``: one line a record. Resuming cuts what the lost steps had written."""

    def __init__(self, out: Path, every: int = 10) -> None:
        self.file, self.every = out / "log.jsonl", every

    def start(self, run: Run) -> None:
        if exists(self.file):
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= run.step]
            with replacing(self.file) as fresh:
                fresh.write_text("".join(line + "\n" for line in kept))

    def after_step(self, run: Run, record: dict[str, float]) -> None:
        if run.step % self.every == 0 or run.step == run.steps:
            line = {"step": run.step, **record, "seconds": round(run.seconds, 2)}
            with open(self.file, "a") as log:
                log.write(json.dumps(json_safe(line)) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line that a crash left


class TensorBoard(Callback):
    """Scalars, and pictures if there are any, as TensorBoard events in ``RUN/tensorboard``."""

    def __init__(self, out: Path, every: int = 10) -> None:
        self.folder, self.every = out / "tensorboard", every

    def start(self, run: Run) -> None:
        board = require("torch.utils.tensorboard", "train")
        self.writer: Any = board.SummaryWriter(str(self.folder), purge_step=run.step + 1)

    def after_step(self, run: Run, record: dict[str, float]) -> None:
        if run.step % self.every == 0 or run.step == run.steps:
            for name, value in record.items():
                self.writer.add_scalar(f"train/{name}", value, run.step)

    def picture(self, name: str, grid: Tensor, step: int) -> None:
        """Adds a picture ``(3, H, W)``, uint8."""
        self.writer.add_image(name, grid, step)

    def end(self, run: Run) -> None:
        self.writer.close()


class SampleGrid(Callback):
    """Samples from the moving average every so often: ``RUN/samples/step-00001000.png``.

    Arguments:
        out: Folder of the run.
        draw: ``model -> images (N, C, H, W)`` in [-1, 1], from fixed noise.
        every: Steps between pictures.
        board: Where to show them as well.
    """

    everywhere = True

    def __init__(
        self,
        out: Path,
        draw: Callable[[nn.Module], Tensor],
        every: int = 1000,
        board: TensorBoard | None = None,
    ) -> None:
        self.folder, self.draw, self.every, self.board = out / "samples", draw, every, board

    def after_step(self, run: Run, record: dict[str, float]) -> None:
        if run.step % self.every and run.step != run.steps:
            return
        images = self.draw(run.averaged())
        if not run.main:
            return
        try:
            picture = grid(images)
        except ModelError as error:
            warnings.warn(f"no picture of step {run.step}: {error.what}", stacklevel=2)
            return
        save_png(picture, self.folder / f"step-{run.step:08d}.png")
        if self.board is not None:
            self.board.picture("samples", picture, run.step)
