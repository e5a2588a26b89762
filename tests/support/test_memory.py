import copy
import ctypes
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.support.memory import paging_out, resident_bytes, trim_heap


def test_every_tensor_counts_once():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    expected = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert resident_bytes(model) == expected
    model.append(model[0])
    assert resident_bytes(model) == expected


def test_integers_take_less(frozen, x):
    fast = tdq.compile(frozen, "onednn", example=(x, torch.tensor(3)))
    kernels = [m for m in fast.modules() if getattr(m, "packed_tensors", None)]
    assert kernels
    assert resident_bytes(fast) > sum(t.numel() for m in kernels for t in m.packed_tensors)
    assert resident_bytes(copy.deepcopy(frozen)) == resident_bytes(frozen)


class Library:
    """A C library, with glibc's function or without."""

    def __init__(self, trim=None):
        if trim is not None:
            self.malloc_trim = trim


def test_the_heap_is_trimmed_where_the_library_can(monkeypatch):
    left = []

    def opened(library):
        if isinstance(library, Exception):
            raise library
        return library

    for library in (Library(left.append), Library(), OSError("no library"), TypeError("Windows")):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: opened(library))
        trim_heap()
    assert left == [0]


def mapped_bytes(path):
    """Bytes of a mapped file that are in this process's memory."""
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if line.rstrip().endswith(str(path)):
                return next(1024 * int(row.split()[1]) for row in lines if row.startswith("Rss"))
    raise AssertionError(f"{path} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what Linux says of a mapping")
def test_a_mapped_file_is_paged_out_while_it_is_read_and_afterwards(tmp_path):
    path = tmp_path / "numbers"
    np.arange(2**21).tofile(path)
    mapped = np.memmap(path, dtype=np.int64, mode="r")
    total = mapped.sum()
    assert mapped_bytes(path) == mapped.nbytes
    threads = threading.active_count()
    with paging_out([(mapped.ctypes.data, mapped.nbytes)]):
        end = time.monotonic() + 20
        while mapped_bytes(path) > mapped.nbytes / 4:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert mapped.sum() == total
    assert mapped_bytes(path) <= mapped.nbytes / 4
    assert threading.active_count() == threads
    assert mapped.sum() == total
