"""Text tables, and words that fit into a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

GAP = "\N{HORIZONTAL ELLIPSIS}"
_SHORTEST = 16


def text_table(
    rows: Iterable[Sequence[str]],
    headers: Sequence[str] = (),
    right: Iterable[int] = (),
    width: int | None = None,
) -> str:
    """Columns of text, two spaces apart.

    Arguments:
        rows: Rows of cells, all of one length.
        headers: Titles of the columns; none if empty.
        right: Indices of the columns that are aligned to the right, as numbers are.
        width: Characters of the terminal: names in the first column are shortened to fit, to 16 at
            least, and then lines are cut. None cuts nothing.

    Returns:
        Lines without trailing spaces.
    """
    cells = [list(row) for row in rows]
    lines = _lines(cells, headers, set(right))
    if width is None or max(map(len, lines), default=0) <= width:
        return "\n".join(lines)
    longest = max((len(row[0]) for row in cells), default=0)
    longest = max(longest - max(map(len, lines)) + width, _SHORTEST)
    cells = [[shortened(row[0], longest), *row[1:]] for row in cells]
    return "\n".join(cut(line, width) for line in _lines(cells, headers, set(right)))


def _lines(cells: list[list[str]], headers: Sequence[str], right: set[int]) -> list[str]:
    columns = len(headers) or len(cells[0] if cells else ())
    align = ["right" if i in right else "left" for i in range(columns)]
    table = tabulate(
        cells, headers, tablefmt="plain", disable_numparse=True, colalign=align if cells else None
    )
    return [line.rstrip() for line in table.splitlines()]


def shortened(name: str, width: int) -> str:
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
