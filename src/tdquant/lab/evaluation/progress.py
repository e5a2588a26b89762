"""Reporting how far a run is, and waiting for the other processes of a run.

Processes share nothing but the folder, which may lie on a file system of several machines: what is
there and whole is done. So any of them may be stopped and started again alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.lab.evaluation.record import PROGRESS, ProgressState, SamplingCost, read_progress

INTERVAL = 2.0
"""Seconds between two updates of the file."""

PATIENCE = 3600.0
"""Seconds without anything new after which waiting fails."""


def now() -> str:
    """The time, ISO."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Progress:
    """``progress.json`` of a run, written by its first process.

    Arguments:
        folder: The run.
        writes: Whether this is the first process.

    Attributes:
        cost: Cost of the images so far, which survives an interruption.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.file = folder / PROGRESS
        self.writes = writes
        self._written, self._stage = 0.0, ""
        try:
            self.cost = read_progress(folder).facts
        except StorageError:
            self.cost = SamplingCost()

    def update(self, stage: str, done: int, of: int) -> None:
        """Notes the stage and how much of it is done; writes rarely enough to cost nothing."""
        soon = stage == self._stage and time.monotonic() - self._written < INTERVAL
        if not self.writes or (done < of and soon):
            return
        self._written, self._stage = time.monotonic(), stage
        state = ProgressState(stage=stage, done=done, of=of, updated=now(), facts=self.cost)
        state.write(self.file)

    def end(self) -> None:
        """Removes the file: the run is finished."""
        if self.writes:
            self.file.unlink(missing_ok=True)


def wait_for(
    count_missing: Callable[[], int],
    what: str,
    folder: Path,
    on_check: Callable[[int], None] = lambda missing: None,
    sign_of_life: Callable[[], Any] = lambda: None,
) -> None:
    """Waits until nothing is missing; calls ``on_check`` with every count.

    Arguments:
        count_missing: Counts what is missing.
        what: In words, for the error.
        folder: Where it will appear.
        on_check: Called with every count.
        sign_of_life: Changes while the other processes work, even if nothing new appears.

    Raises:
        StorageError: Nothing new appeared for ``PATIENCE`` seconds.
    """
    pause, last, since = 0.05, None, time.monotonic()
    while missing := count_missing():
        on_check(missing)
        seen = missing, sign_of_life()
        if seen != last:
            last, since = seen, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise StorageError(
                f"{missing} {what} are missing, and none came for {PATIENCE:.0f} s",
                where=str(folder),
                why="another process of the run ended, or writes to another folder",
                fix="use a folder that all machines share; repeat the command",
            )
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
    on_check(0)
