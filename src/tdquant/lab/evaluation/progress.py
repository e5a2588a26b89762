"""How far a run is, in a file that others watch; and waiting for the other processes of a run.

Processes share nothing but the folder, which may lie on a file system of several machines: what is
there and whole is done. So any of them may be stopped and started again alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.files.writing import replacing
from tdquant.lab.evaluation.record import PROGRESS

INTERVAL = 2.0
"""Seconds between two writings of the file."""

PATIENCE = 3600.0
"""Seconds without anything new after which the other processes are given up."""


def now() -> str:
    """The time, ISO."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Progress:
    """``progress.json`` of a run, written by its first process.

    Arguments:
        folder: The run.
        writes: Whether this is the first process.

    Attributes:
        facts: What is known of the work so far and has to outlive a stop: ``seconds`` of sampling
            and how many images were ``made`` in them.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.file = folder / PROGRESS
        self.writes = writes
        self.facts: dict[str, Any] = {}
        self._written, self._stage = 0.0, ""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self.facts = dict(json.loads(self.file.read_text())["facts"])

    def at(self, stage: str, done: int, of: int) -> None:
        """Notes the stage and how much of it is done; seldom enough to cost nothing."""
        soon = stage == self._stage and time.monotonic() - self._written < INTERVAL
        if not self.writes or (done < of and soon):
            return
        self._written, self._stage = time.monotonic(), stage
        state = {"stage": stage, "done": done, "of": of, "updated": now(), "facts": self.facts}
        with replacing(self.file) as fresh:
            fresh.write_text(json.dumps(state) + "\n")

    def end(self) -> None:
        """Takes the file away: the run is whole."""
        if self.writes:
            self.file.unlink(missing_ok=True)


def wait_for(
    missing: Callable[[], int],
    what: str,
    folder: Path,
    seen: Callable[[int], None] = lambda left: None,
    patience: float | None = None,
    sign: Callable[[], Any] = lambda: None,
) -> None:
    """Waits until nothing is missing.

    Arguments:
        missing: How much is.
        what: In words, for the error.
        folder: Where it is to appear, for the error.
        seen: Called with how much is missing whenever that was looked at.
        patience: Seconds without anything new after which it is given up; ``PATIENCE`` if None.
        sign: What changes while the others work on, though nothing that is missing comes.

    Raises:
        StorageError: Nothing new came for too long.
    """
    patience = PATIENCE if patience is None else patience
    pause, last, since = 0.05, None, time.monotonic()
    while left := missing():
        seen(left)
        now = left, sign()
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > patience:
            raise StorageError(
                f"{left} {what} are missing, and none came for {patience:.0f} s",
                where=str(folder),
                why="another process of the run ended, or writes to another folder",
                fix="the folder has to be one that all machines share; repeat the command",
            )
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
    seen(0)
