"""Text tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def text_table(
    rows: Iterable[Sequence[str]], headers: Sequence[str] = (), right: Iterable[int] = ()
) -> str:
    """Columns of text, two spaces apart.

    Arguments:
        rows: Rows of cells, all of one length.
        headers: Titles of the columns; none if empty.
        right: Indices of the columns that are aligned to the right, as numbers are.

    Returns:
        Lines without trailing spaces.
    """
    cells = [list(row) for row in rows]
    width = len(headers) or len(cells[0] if cells else ())
    numbers = set(right)
    align = ["right" if i in numbers else "left" for i in range(width)]
    table = tabulate(
        cells, headers, tablefmt="plain", disable_numparse=True, colalign=align if cells else None
    )
    return "\n".join(line.rstrip() for line in table.splitlines())
