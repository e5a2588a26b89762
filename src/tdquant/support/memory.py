"""The memory of a model, and returning unused memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence
from itertools import chain

from torch import Tensor, nn

_PAGEOUT = 21
"""Linux's MADV_PAGEOUT, which Python does not name."""

_PAUSE = 0.2
"""Seconds between two rounds of ``paging_out``."""


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers and of ``packed_tensors`` of lowered layers."""
    own = chain(model.parameters(), model.buffers())
    packed = chain.from_iterable(
        getattr(module, "packed_tensors", ()) for module in model.modules()
    )
    known = {id(tensor): tensor for tensor in chain(own, packed)}
    return sum(tensor.numel() * tensor.element_size() for tensor in known.values())


def trim_heap() -> None:
    """Returns freed memory to the system, where the C library is glibc: after packing hundreds of
    layers it keeps as much again as the packed model.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def page_out(tensor: Tensor) -> None:
    """Returns the memory of a tensor mapped from a file to the system, where that is Linux: pages
    that were touched count as long as the mapping lasts. They are read again when needed.
    """
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        page_out_at(tensor.data_ptr(), tensor.nbytes)


def page_out_at(address: int, size: int) -> None:
    """As ``page_out``, for the bytes that begin at an address."""
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + size) // page * page - start
    with contextlib.suppress(AttributeError, OSError, TypeError):
        if length > 0:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_PAGEOUT)
            )


@contextlib.contextmanager
def paging_out(regions: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Pages regions out, of addresses and sizes, while the context lasts and when it ends: what
    reads a mapped file once from one end to the other then never has all of it in memory.
    """
    done = threading.Event()

    def page_out_all() -> None:
        for address, size in regions:
            page_out_at(address, size)

    def repeat() -> None:
        while not done.wait(_PAUSE):
            page_out_all()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        page_out_all()
