"""Counting the bytes of tensors that are alive at once."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of what operations inside the context made and nobody has let go yet; what was there
    before, and views of it, do not count.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if _is_real(leaf) and _place(leaf) not in given:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage):
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size):
        self.now -= size


def _is_real(leaf):
    return isinstance(leaf, torch.Tensor) and not leaf.is_meta


def _place(tensor):
    return tensor.untyped_storage().data_ptr()
