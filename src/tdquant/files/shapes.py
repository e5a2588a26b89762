"""What JSON must look like, and every place where it does not.

A shape is a type, a tuple of types, a list of one shape, or a dictionary of keys and shapes. A key
with ``?`` at its end may be missing or null.
"""

from __future__ import annotations

import math
from types import NoneType
from typing import Any

from tdquant.errors import StorageError

NUMBER = (int, float)
GAP = (int, float, NoneType)

_WORDS = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list",
          bool: "true or false", NoneType: "null"}  # fmt: skip


def mistakes(value: Any, shape: Any, at: str = "") -> list[str]:
    """Every way in which a value is not of a shape, each with the place where.

    Arguments:
        value: What JSON gave.
        shape: See above.
        at: Place of the value; empty for the whole.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [_wrong(at, (dict,))]
        found = []
        for key, inner in shape.items():
            name, optional = key.rstrip("?"), key.endswith("?")
            if value.get(name) is None and (optional or _takes_null(inner)):
                continue
            place = f"{at}.{name}" if at else name
            if name not in value:
                found.append(f"{place} is missing")
            else:
                found += mistakes(value[name], inner, place)
        return found
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [_wrong(at, (list,))]
        return [m for i, item in enumerate(value) for m in mistakes(item, shape[0], f"{at}[{i}]")]
    types = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, types) and (not isinstance(value, bool) or bool in types)
    # JSON of Python has NaN and Infinity, which stand for nothing: a gap, where gaps may be.
    if isinstance(value, float) and not math.isfinite(value):
        fits = NoneType in types
    return [] if fits else [_wrong(at, types)]


def refuse(wrong: list[str], what: str, where: str, fix: str = "") -> None:
    """Raises a StorageError that lists what is wrong, the first eight of it; does nothing if
    nothing is.

    Arguments:
        wrong: What ``mistakes`` and other checks found.
        what: What is damaged then, such as ``"the record"``.
        where: The file.
        fix: What to do.
    """
    if wrong:
        more = [f"and {len(wrong) - 8} more"] if len(wrong) > 8 else []
        listed = "\n  - ".join([*wrong[:8], *more])
        raise StorageError(f"{what} is damaged:\n  - {listed}", where=where, fix=fix)


def _takes_null(shape: Any) -> bool:
    return isinstance(shape, tuple) and NoneType in shape


def _wrong(at: str, types: tuple[type, ...]) -> str:
    words = {_WORDS[kind] for kind in types} - ({"a whole number"} if float in types else set())
    return f"{at or 'the file'} is not {' or '.join(sorted(words))}"
