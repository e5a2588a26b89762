"""The benchmark's table, as text for a terminal."""

from __future__ import annotations

import math

from tdquant.lab.bench.run import BenchResult, BenchRow
from tdquant.lab.bench.worker import FLOAT
from tdquant.lowering.backends import ALIASES
from tdquant.support import tables

HEAD = (
    "backend", "ms a call", "+-", "x float", "images/s",
    "peak MB", "of model", "disk MB", "MSE", "SQNR dB",
)  # fmt: skip


def text_table(result: BenchResult) -> str:
    """The table, then what did not run, kernels and the machine."""
    rows = [row for row in result.rows if not row.problem]
    base = next((row.median for row in rows if row.backend == FLOAT), None)
    cells = [_cells(row, base) for row in rows]
    lines = tables.text_table([HEAD, *cells], right=range(1, len(HEAD))).splitlines()
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"{row.backend}: not run: {row.problem}" for row in result.rows if row.problem]
    for row in rows:
        kernels = ", ".join(f"{n} {kernel}" for kernel, n in sorted(row.kernels.items()))
        if kernels:
            chosen = f"{row.choice}: " if row.backend in ALIASES else ""
            lines.append(f"{row.backend}: {chosen}{kernels}")
    settings, where = result.settings, result.machine
    lines += [
        f"{settings['model']}: batch {settings['batch']}, {settings['steps']} steps an image, "
        f"median of {settings['runs']} calls in turns, +- half the quartile distance",
        f"{settings['threads']} threads of {where['processor']} ({where['cores']} cores, "
        f"{where['instructions']}), torch {where['torch']}",
        "peak memory while running, of the process and without Python and its packages; "
        f"errors against {settings['against']}",
    ]
    return "\n".join(lines)


def _cells(row: BenchRow, base: float | None) -> tuple[str, ...]:
    exact = row.backend == FLOAT
    running = row.megabytes["running"]
    return (
        row.backend,
        f"{row.median:.2f}",
        "-" if math.isnan(row.spread) else f"{100 * row.spread:.0f}%",
        f"{base / row.median:.2f}" if base else "-",
        f"{row.images_per_second:.2f}",
        f"{running:.0f}",
        f"{running - row.megabytes['bare']:.0f}",
        f"{row.disk:.2f}",
        "-" if exact else f"{row.mse:.2e}",
        "-" if exact or math.isinf(row.sqnr) else f"{row.sqnr:.1f}",
    )
