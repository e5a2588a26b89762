"""Extending other libraries once they are imported: importing diffusers takes seconds, which a
program that does not need it must not pay.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WAITING: dict[str, list[Callable[[], object]]] = {}


class _Watch(MetaPathFinder):
    """Finds nothing itself; has the loader of an awaited module report when it has run."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in _WAITING:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                _report(name, spec)
                return spec
        return None


def _report(name: str, spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    run = getattr(loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module: ModuleType) -> None:
        run(module)
        for callback in _WAITING.pop(name, []):
            callback()

    loader.exec_module = exec_module


_WATCH = _Watch()


def when_imported(name: str, callback: Callable[[], object]) -> None:
    """Calls back when the module ``name`` is imported: now, if it is already."""
    if name in sys.modules:
        callback()
        return
    _WAITING.setdefault(name, []).append(callback)
    if _WATCH not in sys.meta_path:
        sys.meta_path.insert(0, _WATCH)


def wrap_method(cls: type, name: str, around: Callable[..., Any]) -> None:
    """Replaces a method by ``around(method, self, ...)``; a second call changes nothing."""
    method = getattr(cls, name)
    if getattr(method, "tdquant", False):
        return

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    wrapped.tdquant = True  # type: ignore[attr-defined]
    setattr(cls, name, wrapped)
