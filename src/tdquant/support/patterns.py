"""Glob patterns over module paths. Patterns without wildcards are compared as strings, which is
fast: a searched recipe has one for each of hundreds of layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

_WILD = frozenset("*?[")


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern matches a path, case-sensitively."""
    return path == pattern or (not _WILD.isdisjoint(pattern) and fnmatchcase(path, pattern))


def matching(paths: str | Collection[str], patterns: Iterable[str]) -> list[str]:
    """The patterns that match a path, or one of the paths that a module has, in their order."""
    paths = (paths,) if isinstance(paths, str) else paths
    return [pattern for pattern in patterns if any(matches(path, pattern) for path in paths)]


def unmatched_patterns(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """The patterns that match none of the paths; they are usually misspelt."""
    return [p for p in patterns if p not in paths and not any(matches(path, p) for path in paths)]
