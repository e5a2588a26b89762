"""Names and lines that fit into a terminal."""

from __future__ import annotations

GAP = "\N{HORIZONTAL ELLIPSIS}"


def narrow(name: str, width: int) -> str:
    """A name in at most ``width`` characters. What is too much is cut out of its first half: the
    ends of the paths in a model tell more than their beginnings.
    """
    if len(name) <= width:
        return name
    kept = max(width - len(GAP), 0)
    head = kept // 3
    return (name[:head] + GAP + name[len(name) - (kept - head) :])[:width]


def cut(line: str, width: int) -> str:
    """A line in at most ``width`` characters, without its end if it has more."""
    return line if len(line) <= width else line[: max(width - len(GAP), 0)] + GAP[:width]


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
