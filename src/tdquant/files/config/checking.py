"""Keys that are missing, misspelt or unknown, as sentences, so that one error tells them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from tdquant.errors import ConfigError

CLOSE = 0.75
"""Similarity (difflib's ratio) from which an unknown key counts as a known one misspelt."""


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that ``name`` most likely stands for, or None where none is close."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=CLOSE)
    return close[0] if close else None


def check_keys(
    found: object,
    known: Iterable[str],
    required: Iterable[str] = (),
    where: str = "",
    *,
    strict: bool = True,
) -> list[str]:
    """The mistakes in one section of a configuration, one sentence each.

    Arguments:
        found: The section.
        known: Keys that something reads.
        required: Keys that must be there and not null; they are known, too.
        where: Dotted path of the section, ``""`` for the whole configuration.
        strict: Every unknown key is a mistake. Otherwise only one that is close to a known key:
            see ``foreign_keys`` for the others.

    Returns:
        Sentences such as ``"model.params.chanels: no such key; nearest: channels"``; none if the
        section is in order.
    """
    if not isinstance(found, Mapping):
        held = "nothing" if found is None else f"{found!r}"
        return [f"{where or 'the configuration'}: a section of keys is needed, not {held}"]
    required = tuple(required)
    allowed = list(dict.fromkeys((*known, *required)))
    mistakes = []
    for key in found:
        if key in allowed:
            continue
        close = nearest(key, allowed)
        if close is not None:
            mistakes.append(f"{dotted(where, key)}: no such key; nearest: {close}")
        elif strict:
            mistakes.append(f"{dotted(where, key)}: no such key; one of {', '.join(allowed)}")
    mistakes += [f"{dotted(where, key)}: missing" for key in required if found.get(key) is None]
    return mistakes


def foreign_keys(found: object, known: Iterable[str], where: str = "") -> list[str]:
    """Dotted paths of the keys of a section that are neither known nor close to a known key."""
    if not isinstance(found, Mapping):
        return []
    allowed = list(known)
    return [
        dotted(where, key) for key in found if key not in allowed and nearest(key, allowed) is None
    ]


def dotted(where: str, key: object) -> str:
    """The dotted path of ``key`` in the section ``where``."""
    return f"{where}.{key}" if where else str(key)


def complain(mistakes: Iterable[str], where: str = "the configuration") -> None:
    """Raises one error that lists ``mistakes``; does nothing where there are none.

    Arguments:
        mistakes: Sentences from ``check_keys`` and its like.
        where: What they were found in, such as a file's name.

    Raises:
        ConfigError: There is at least one mistake.
    """
    listed = list(mistakes)
    if listed:
        count = f"{len(listed)} mistake{'s' * (len(listed) > 1)}"
        raise ConfigError(f"{count} in {where}:\n  - " + "\n  - ".join(listed))
