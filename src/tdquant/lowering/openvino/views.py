"""Views of tensors that are written to in place, for graphs, which have no memory to share.

OpenVINO takes what is written to a slice for a new value of the whole, made of what the slice was
taken from. A second slice, taken before the first was written to, still refers to the whole as it
was: a write to it undoes the other, and a read of it misses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class _View:
    """How a view was made: ``function(*args, **kwargs)``, or one of the tensors that it gives."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    index: int | None
    version: int

    def again(self) -> Tensor:
        """The same view, taken now."""
        found = self.function(*self.args, **self.kwargs)
        return found if self.index is None else found[self.index]


class FreshViews(TorchFunctionMode):
    """Takes views again, before an operation reads or writes them, whose memory was written to
    since they were taken. In PyTorch that changes nothing; a trace of it says what follows what.
    """

    def __init__(self) -> None:
        super().__init__()
        self._views: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._views:
            args, kwargs = tree_map_only(Tensor, self._fresh, (args, kwargs))
        found = func(*args, **kwargs)
        given = args[0] if args else None
        if isinstance(given, Tensor):
            parts = enumerate(found) if isinstance(found, (tuple, list)) else [(None, found)]
            for index, part in parts:
                if isinstance(part, Tensor) and part is not given and part._is_view():
                    view = _View(func, args, kwargs, index, part._version)
                    self._views[part] = view
        return found

    def _fresh(self, tensor: Tensor) -> Tensor:
        view = self._views.get(tensor)
        if view is None or view.version == tensor._version:
            return tensor
        args, kwargs = tree_map_only(Tensor, self._fresh, (view.args, view.kwargs))
        fresh = _View(view.function, args, kwargs, view.index, tensor._version)
        found = fresh.again()
        self._views[found] = fresh
        return found
