"""The demonstration's table, as text for a terminal."""

from __future__ import annotations

from tdquant.lab.demo.run import DemoRow
from tdquant.support import tables

HEAD = (
    "bits",
    "scale",
    "Frechet dist.",
    "paired MSE",
    "median",
    "SQNR dB",
    "MB on disk",
    "MB in RAM",
    "ms a call",
)


def cells(row: DemoRow) -> tuple[str, ...]:
    """A row as text, column by column of ``HEAD``."""
    if row.bits == "float":
        paired: tuple[str, ...] = ("-",) * 3
    else:
        paired = (f"{row.mse:.5f}", f"{row.median:.6f}", f"{row.sqnr:.1f}")
    costs = (f"{row.megabytes:.2f}", f"{row.resident:.2f}", f"{row.milliseconds:.1f}")
    return row.bits, row.scale or "-", f"{row.frechet:.2f}", *paired, *costs


def text_table(rows: list[DemoRow]) -> str:
    """The table, with a rule before each bit width."""
    text = tables.text_table([HEAD, *map(cells, rows)], right=range(2, len(HEAD)))
    head, *lines = text.splitlines()
    found, bits = [head], None
    for row, line in zip(rows, lines, strict=True):
        found += [line] if row.bits == bits else ["-" * len(head), line]
        bits = row.bits
    return "\n".join(found)
