"""The layers of a saved model as a table for a terminal, with their tables as sparklines."""

from __future__ import annotations

import math
from typing import Any

from tdquant.storage.description import Description
from tdquant.storage.narrow import counted, cut, narrow
from tdquant.storage.sparkline import sparkline
from tdquant.storage.tensor_files import TensorFiles

HEAD = ("layer", "type", "weight", "input", "zero", "kB", "s(t)")
_BARS, _FEWEST_BARS, _SHORTEST = 24, 8, 16
"""Characters of a sparkline, and the fewest of it and of a path where a terminal is narrow."""

Row = tuple[str, ...]


def layer_table(index: Description, files: TensorFiles, width: int | None = None) -> str:
    """One line for each layer: bits of weight and input, zero point, kilobytes stored, and the
    activation's step: its value, or its least and largest over time and the curve between. So is
    the gain of a corrected model.

    Arguments:
        index: What ``read_index`` gave.
        files: The model's tensors.
        width: Characters of the terminal, to which the lines are cut: first the sparklines and
            knots, then the paths, then the ends. None cuts nothing.
    """
    rows = _rows(index, files, _BARS)
    if width is not None and _span(rows) > width:
        rows = _rows(index, files, _BARS - 1)
        if (over := _span(rows) - width) > 0:
            rows = _rows(index, files, max(_BARS - 1 - over, _FEWEST_BARS))
        longest = max(max(len(row[0]) for row in rows) - max(_span(rows) - width, 0), _SHORTEST)
        rows = [(narrow(row[0], longest), *row[1:]) for row in rows]
    widths = _widths(rows)
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in [HEAD, *rows]
    ]
    lines.insert(1, "  ".join("-" * w for w in widths) + "  ----")
    if index.get("gain"):
        curve = _curve("tdq_gain.scale.table", files, _BARS)
        lines += ["", f"gain of the output over time: {curve}"]
    lines = [line.rstrip() for line in lines]
    if width is not None:
        lines = [cut(line, width) for line in lines]
    return "\n".join([*lines, _totals(index, files)])


def _rows(index: Description, files: TensorFiles, bars: int) -> list[Row]:
    rows = [
        _row(path, spec["type"], spec.get("weight"), spec.get("input"), f"{path}.", files, bars)
        for path, spec in index["layers"].items()
    ]
    for path, operands in index["attention"].items():
        for name, spec in operands.items():
            prefix = f"{path}.processor.{name}_quantizer."
            rows.append(_row(f"{path}.{name}", "attention", None, spec, prefix, files, bars))
    return rows


def _widths(rows: list[Row]) -> list[int]:
    """Characters of each column but the last."""
    return [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD) - 1)]


def _span(rows: list[Row]) -> int:
    """Characters of the longest line."""
    return sum(w + 2 for w in _widths(rows)) + max(len(row[-1]) for row in [HEAD, *rows])


def _row(
    path: str,
    kind: str,
    weight: dict[str, Any] | None,
    activation: dict[str, Any] | None,
    prefix: str,
    files: TensorFiles,
    bars: int,
) -> Row:
    kilobytes = sum(size for name, size in files.sizes.items() if name.startswith(prefix)) / 1e3
    return (
        path,
        kind,
        f"{weight['bits']} bits" if weight else "float",
        f"{activation['bits']} bits" if activation else "float",
        str(activation["zero_point"]) if activation else "",
        f"{kilobytes:.1f}",
        _steps(activation, prefix, files, bars) if activation else "",
    )


def _steps(activation: dict[str, Any], prefix: str, files: TensorFiles, bars: int) -> str:
    if activation["scale"] == "dynamic":
        return "dynamic: from each input"
    own = prefix if prefix.endswith("_quantizer.") else f"{prefix}input_quantizer."
    return _curve(f"{own}scale.table", files, bars)


def _curve(name: str, files: TensorFiles, bars: int) -> str:
    """A table: its value, or its least and largest and the line between."""
    if name not in files.shapes:
        return ""
    table = files.read(name).double()
    low, high = float(table.min()), float(table.max())
    if len(table) == 1 or low == high:
        return f"{low:.3g}"
    knots = f"  {len(table)} knots" if bars == _BARS else ""  # of all it tells least
    return f"{low:.3g} to {high:.3g}  {sparkline(table, bars)}{knots}"


def _totals(index: Description, files: TensorFiles) -> str:
    weights = [spec["weight"] for spec in index["layers"].values() if "weight" in spec]
    numbers = sum(math.prod(spec["shape"]) for spec in weights)
    tables = sum(size for name, size in files.sizes.items() if name.endswith(".scale.table"))
    stored = sum(files.sizes.values())
    packed = sum(size for name, size in files.sizes.items() if name.endswith(".weight.codes"))
    text = f"{counted(len(index['layers']), 'layer')}, {stored / 1e6:.2f} MB of tensors"
    if numbers:
        text += f": {numbers / 1e6:.2f}M weights as {packed / 1e6:.2f} MB of codes ("
        text += f"{8 * packed / numbers:.1f} bits each), {tables / 1e6:.2f} MB of tables"
    return text
