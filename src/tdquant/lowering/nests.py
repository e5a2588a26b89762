"""Nested arguments and results of a model, as the flat tensors that a graph has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Output(dict[str, Any]):
    """What a diffusers model returns: fields by name, by attribute and by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Tensors and constants in nested dictionaries, lists and tuples: ``added.text_embeds``."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from leaves(f"{name}.{index}", part)
    else:
        yield name, value


def rebuilt(name: str, value: Any, found: Mapping[str, Any]) -> Any:
    """``value`` with every leaf that ``found`` names replaced by what is found there."""
    if isinstance(value, Mapping):
        return {key: rebuilt(f"{name}.{key}", part, found) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [rebuilt(f"{name}.{i}", part, found) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    return found.get(name, value)
