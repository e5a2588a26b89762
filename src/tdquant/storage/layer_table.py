"""The layers of a saved model as a table for a terminal, with their tables as sparklines."""

from __future__ import annotations

import math
from typing import Any

from tdquant.storage.description import Description
from tdquant.storage.sparkline import sparkline
from tdquant.storage.tensor_files import TensorFiles

HEAD = ("layer", "type", "weight", "input", "zero", "kB", "s(t)")


def layer_table(index: Description, files: TensorFiles) -> str:
    """One line for each layer: bits of weight and input, zero point, kilobytes stored, and the
    activation's step: its value, or its least and largest over time and the curve between. So is
    the gain of a corrected model.

    Arguments:
        index: What ``read_index`` gave.
        files: The model's tensors.
    """
    rows = [
        _row(path, spec["type"], spec.get("weight"), spec.get("input"), f"{path}.", files)
        for path, spec in index["layers"].items()
    ]
    for path, operands in index["attention"].items():
        for name, spec in operands.items():
            prefix = f"{path}.processor.{name}_quantizer."
            rows.append(_row(f"{path}.{name}", "attention", None, spec, prefix, files))
    table = [HEAD, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in table
    ]
    lines.insert(1, "  ".join("-" * w for w in widths) + "  ----")
    if index.get("gain"):
        lines += ["", f"gain of the output over time: {_curve('tdq_gain.scale.table', files)}"]
    return "\n".join([*(line.rstrip() for line in lines), _totals(index, files)])


def _row(
    path: str,
    kind: str,
    weight: dict[str, Any] | None,
    activation: dict[str, Any] | None,
    prefix: str,
    files: TensorFiles,
) -> tuple[str, ...]:
    kilobytes = sum(size for name, size in files.sizes.items() if name.startswith(prefix)) / 1e3
    return (
        path,
        kind,
        f"{weight['bits']} bits" if weight else "float",
        f"{activation['bits']} bits" if activation else "float",
        str(activation["zero_point"]) if activation else "",
        f"{kilobytes:.1f}",
        _steps(activation, prefix, files) if activation else "",
    )


def _steps(activation: dict[str, Any], prefix: str, files: TensorFiles) -> str:
    if activation["scale"] == "dynamic":
        return "dynamic: from each input"
    own = prefix if prefix.endswith("_quantizer.") else f"{prefix}input_quantizer."
    return _curve(f"{own}scale.table", files)


def _curve(name: str, files: TensorFiles) -> str:
    """A table: its value, or its least and largest and the line between."""
    if name not in files.shapes:
        return ""
    table = files.read(name).double()
    low, high = float(table.min()), float(table.max())
    if len(table) == 1 or low == high:
        return f"{low:.3g}"
    return f"{low:.3g} to {high:.3g}  {sparkline(table)}  {len(table)} knots"


def _totals(index: Description, files: TensorFiles) -> str:
    weights = [spec["weight"] for spec in index["layers"].values() if "weight" in spec]
    numbers = sum(math.prod(spec["shape"]) for spec in weights)
    tables = sum(size for name, size in files.sizes.items() if name.endswith(".scale.table"))
    stored = sum(files.sizes.values())
    packed = sum(size for name, size in files.sizes.items() if name.endswith(".weight.codes"))
    text = f"{len(index['layers'])} layers, {stored / 1e6:.2f} MB of tensors"
    if numbers:
        text += f": {numbers / 1e6:.2f}M weights as {packed / 1e6:.2f} MB of codes ("
        text += f"{8 * packed / numbers:.1f} bits each), {tables / 1e6:.2f} MB of tables"
    return text
