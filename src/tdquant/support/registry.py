"""Registries: dictionaries that decorators fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def registrar(registry: dict[str, T]) -> Callable[[str], Callable[[T], T]]:
    """The decorator ``@register("name")`` of a registry, which returns what it decorates."""

    def register(name: str) -> Callable[[T], T]:
        def put(entry: T) -> T:
            registry[name] = entry
            return entry

        return put

    return register
