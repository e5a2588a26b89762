"""Temporary hooks of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks when the context ends, by an error too."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
