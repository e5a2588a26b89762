"""The demonstration's table, as text for a terminal and as Markdown."""

from __future__ import annotations

from tdquant.lab.demo.run import DemoRow

HEAD = (
    "bits",
    "scale",
    "Frechet dist.",
    "paired MSE",
    "SQNR dB",
    "MB on disk",
    "MB in RAM",
    "ms a call",
)


def _cells(row: DemoRow) -> tuple[str, ...]:
    paired = ("-", "-") if row.bits == "float" else (f"{row.mse:.5f}", f"{row.sqnr:.1f}")
    costs = (f"{row.megabytes:.2f}", f"{row.resident:.2f}", f"{row.milliseconds:.1f}")
    return row.bits, row.scale or "-", f"{row.frechet:.2f}", *paired, *costs


def text_table(rows: list[DemoRow]) -> str:
    """Columns aligned for a terminal, a rule between bit widths."""
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [HEAD, *cells]) for i in range(len(HEAD))]

    def line(values: tuple[str, ...]) -> str:
        left = [v.ljust(w) for v, w in zip(values[:2], widths[:2], strict=True)]
        right = [v.rjust(w) for v, w in zip(values[2:], widths[2:], strict=True)]
        return "  ".join(left + right)

    rule = "-" * len(line(HEAD))
    out = [line(HEAD)]
    for previous, row, values in zip([None, *rows], rows, cells, strict=False):
        if previous is None or previous.bits != row.bits:
            out.append(rule)
        out.append(line(values))
    return "\n".join(out)


def markdown_table(rows: list[DemoRow]) -> str:
    """The same for a document."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- " + "| ---: " * (len(HEAD) - 2) + "|"]
    return "\n".join(lines + ["| " + " | ".join(_cells(row)) + " |" for row in rows])
