"""Keys of a configuration that are missing, misspelt or unknown, one sentence for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

CLOSE = 0.75
"""Similarity (difflib's ratio) from which an unknown key counts as a known one misspelt."""


def check_keys(
    found: object,
    known: Iterable[str],
    required: Iterable[str] = (),
    where: str = "",
    *,
    strict: bool = True,
) -> list[str]:
    """Finds the mistakes in one section of a configuration.

    Arguments:
        found: The section.
        known: Keys that something reads.
        required: Keys that must be there and not null; they are known, too.
        where: Dotted path of the section, ``""`` for the whole configuration.
        strict: Every unknown key is a mistake. Otherwise only one that is close to a known key is;
            ``foreign_keys`` gives the others.

    Returns:
        Sentences such as ``"model.params.chanels: no such key; nearest: channels"``.
    """
    if not isinstance(found, Mapping):
        held = "nothing" if found is None else f"{found!r}"
        return [f"{where or 'the configuration'}: a section of keys is needed, not {held}"]
    required = tuple(required)
    allowed = list(dict.fromkeys((*known, *required)))
    mistakes = []
    for key in found:
        close = _nearest(key, allowed)
        if key not in allowed and (close or strict):
            words = f"nearest: {close}" if close else f"one of {', '.join(allowed)}"
            mistakes.append(f"{dotted(where, key)}: no such key; {words}")
    return mistakes + [f"{dotted(where, k)}: missing" for k in required if found.get(k) is None]


def foreign_keys(found: object, known: Iterable[str], where: str = "") -> list[str]:
    """Dotted paths of the keys of a section that are neither known nor close to a known key."""
    keys, known = found if isinstance(found, Mapping) else (), list(known)
    return [dotted(where, key) for key in keys if _nearest(key, known) is None]


def dotted(where: str, key: object) -> str:
    """The dotted path of ``key`` in the section ``where``."""
    return f"{where}.{key}" if where else str(key)


def _nearest(name: object, known: list[str]) -> str | None:
    """The known name that ``name`` is or most likely stands for, None where none is close."""
    close = get_close_matches(str(name), known, n=1, cutoff=CLOSE)
    return close[0] if close else None
