"""The layers of a saved model as a table for a terminal, with their scales as sparklines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tdquant.files.checkpoints import LazyTensor
from tdquant.storage.description import ROWS, Description
from tdquant.storage.sparkline import sparkline
from tdquant.support.tables import counted, cut, text_table

HEAD = ("layer", "type", "weight", "input", "zero", "kB", "remedies", "s(t)")
_REMEDIES = HEAD.index("remedies")
_BARS = 24
"""Characters of a sparkline. In narrow terminals it has 16 or 8, and no number of knots."""
_DYNAMIC = {"dynamic": "dynamic: from each input", ROWS: "dynamic: from each row of the input"}

Tensors = Mapping[str, LazyTensor]


def layer_table(index: Description, tensors: Tensors, width: int | None = None) -> str:
    """One line for each layer: bits of weight and input, zero point, kilobytes stored, remedies if
    any layer has some, and the activation's step size: its value, or its least and largest over
    time and the curve between; and the gain of a corrected model, and the largest of its bias.

    Arguments:
        index: What ``read_index`` gave.
        tensors: The model's tensors.
        width: Characters of the terminal, to which the lines are cut: first the sparklines, then
            the paths, then the ends. None cuts nothing.
    """
    rows = list(_rows(index, tensors))
    remedied = any(cells[_REMEDIES] for cells in rows)
    shown = [i for i in range(len(HEAD)) if remedied or i != _REMEDIES]
    head = [HEAD[i] for i in shown]
    for bars in (_BARS, 16, 8):
        drawn = [[*cells, _curve(steps, bars)] for *cells, steps in rows]
        drawn = [[cells[i] for i in shown] for cells in drawn]
        table = text_table(drawn, head, right=(4, 5))
        if width is None or max(map(len, table.splitlines())) <= width:
            break
    else:
        table = text_table(drawn, head, right=(4, 5), width=width)
    lines = [table]
    corrected = list(_correction(index, tensors))
    if corrected:
        lines += ["", *(line if width is None else cut(line, width) for line in corrected)]
    return "\n".join([*lines, _totals(index, tensors)])


def _correction(index: Description, tensors: Tensors) -> Iterator[str]:
    """What is done to the output, over time."""
    if not (index.get("correction") or index.get("gain")):
        return
    child = "tdq_correction." if index.get("correction") else "tdq_gain."
    yield f"gain of the output over time: {_curve(_table(child, tensors), _BARS)}"
    bias = tensors.get(f"{child}bias.table")
    if bias is not None:
        largest = bias.load().double().abs().amax(1)
        yield f"largest bias of the output over time: {_curve(largest, _BARS)}"


def _rows(index: Description, tensors: Tensors) -> Iterator[tuple[Any, ...]]:
    """The cells of each line, the last of them a curve or words."""
    named = (index.get("remedies") or {}).get("layers", {})
    for path, spec in index["layers"].items():
        activation = spec.get("input")
        own = f"{path}.input_quantizer."
        cells = _cells(spec.get("weight"), activation, f"{path}.", tensors)
        grouped = ["groups"] if (spec.get("weight") or {}).get("group") else []
        remedies = " ".join([*grouped, *named.get(path, ())])
        kind = spec["type"].removeprefix("Quant")
        yield (path, kind, *cells, remedies, _steps(activation, own, tensors))
    for path, operands in index["attention"].items():
        for name, activation in operands.items():
            own = f"{path}.processor.{name}_quantizer."
            cells = _cells(None, activation, own, tensors)
            yield (f"{path}.{name}", "attention", *cells, "", _steps(activation, own, tensors))


def _cells(weight: Any, activation: Any, prefix: str, tensors: Tensors) -> tuple[str, ...]:
    size = sum(t.nbytes for name, t in tensors.items() if name.startswith(prefix))
    return (
        f"{weight['bits']} bits" if weight else "float",
        f"{activation['bits']} bits" if activation else "float",
        str(activation["zero_point"]) if activation else "",
        f"{size / 1e3:.1f}",
    )


def _steps(activation: Any, prefix: str, tensors: Tensors) -> Tensor | str:
    if activation and activation["scale"] in _DYNAMIC:
        return _DYNAMIC[activation["scale"]]
    return _table(prefix, tensors) if activation else ""


def _table(prefix: str, tensors: Tensors) -> Tensor | str:
    table = tensors.get(f"{prefix}scale.table")
    return "" if table is None else table.load().double()


def _curve(table: Tensor | str, bars: int) -> str:
    """A table: its value, or its least and largest and the line between."""
    if isinstance(table, str):
        return table
    low, high = float(table.min()), float(table.max())
    if low == high:
        return f"{low:.3g}"
    knots = f"  {len(table)} knots" if bars == _BARS else ""
    return f"{low:.3g} to {high:.3g}  {sparkline(table, bars)}{knots}"


def _totals(index: Description, tensors: Tensors) -> str:
    weights = [spec["weight"] for spec in index["layers"].values() if "weight" in spec]
    numbers = sum(math.prod(spec["shape"]) for spec in weights)

    def megabytes(end: str) -> float:
        return sum(t.nbytes for name, t in tensors.items() if name.endswith(end)) / 1e6

    packed = megabytes(".weight.codes") + megabytes(".weight.multipliers")
    text = f"{counted(len(index['layers']), 'layer')}, {megabytes(''):.2f} MB of tensors"
    if numbers:
        text += f": {numbers / 1e6:.2f}M weights as {packed:.2f} MB of codes ("
        text += f"{8e6 * packed / numbers:.1f} bits each), {megabytes('.scale.table'):.2f} MB "
        text += "of tables"
    return text
