"""Progress bars where tqdm is installed and somebody watches; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], label: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yields ``items`` under a progress bar on stderr with a rate and the time left.

    Arguments:
        items: What to go through.
        label: The words in front of the bar.
        total: Number of items where ``len(items)`` does not tell.
        show: False draws nothing.
    """
    if not show:
        yield from items
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    interactive = sys.stderr.isatty()
    # Into a log file a bar would be thousands of lines: one line every 15 s is enough there.
    yield from tqdm(
        items, label, total, leave=False, mininterval=0.1 if interactive else 15, ncols=88
    )
