"""Checks of values that a user gives, as lists of the mistakes in them."""

from __future__ import annotations


def is_whole(value: object) -> bool:
    """Whether a value is an integer, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> list[str]:
    """The mistake in a value that is none of the allowed ones; empty if it is one."""
    return [] if value in allowed else [f"{name}={value!r}: one of {', '.join(allowed)}"]
