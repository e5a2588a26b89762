"""Progress bars on stderr, if tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], label: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yields ``items`` under a progress bar on stderr with a rate and the time left.

    Arguments:
        items: The items.
        label: The words in front of the bar.
        total: Number of items, if ``len(items)`` is not defined.
        show: False draws nothing.
    """
    drawn = _tqdm(items, label, total, 0, show)
    yield from items if drawn is None else drawn


class Bar:
    """A progress bar that the caller advances, with a status text.

    Arguments:
        label: The words in front of the bar.
        total: Number of steps.
        start: Steps already done.
        show: False draws nothing.
    """

    def __init__(self, label: str, total: int, start: int = 0, show: bool = True) -> None:
        self._bar = _tqdm(None, label, total, start, show)

    def advance(self, words: str = "") -> None:
        """Advances the bar by one step."""
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


def _tqdm(items: Any, label: str, total: int | None, start: int, show: bool) -> Any:
    if not show:
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # Into a log file a bar would be thousands of lines: one line every 15 s is enough there.
    interval = 0.1 if sys.stderr.isatty() else 15
    return tqdm(items, label, total, initial=start, leave=False, mininterval=interval, ncols=88)
