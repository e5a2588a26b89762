"""SIGTERM and SIGINT ask a run to stop after the step in hand; a later one stops it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT = 2.0
"""Seconds for which further signals count as the first one. One that is sent to every process of
a job, as Slurm does, reaches a worker of torchrun twice: directly, and passed on by torchrun.
"""

Handlers = dict[signal.Signals, Any]


def take_over(handler: Callable[[int, FrameType | None], None]) -> Handlers:
    """Installs a handler for both signals; in a thread other than the main one, does nothing.

    Returns:
        The handlers that it replaced, for ``put_back``.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}


def put_back(before: Handlers) -> None:
    """Installs the handlers that ``take_over`` replaced.

    Python cannot install a handler again that C code had installed: the signal gets Python's
    default, so that it is not lost on a handler that nobody reads any more.
    """
    default: Handlers = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    for number, handler in before.items():
        signal.signal(number, default[number] if handler is None else handler)


class Interruptions:
    """Context in which the two signals only set a flag.

    Attributes:
        asked: Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: Handlers = {}

    def __enter__(self) -> Interruptions:
        self._before = take_over(self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
        elif now - self._since >= REPEAT:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        put_back(self._before)
        self._before = {}

    def __exit__(self, *error: object) -> None:
        self._restore()
