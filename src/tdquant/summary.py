"""The layer table: what became of every layer of a quantized model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tdquant.layers import QUANTIZED, QuantLayer
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.quantizers import ActivationQuantizer
from tdquant.recipe import FLOAT
from tdquant.scales import TableScale


@dataclass(frozen=True)
class Row:
    """One layer: its path and class, bits and codes of weight and input, and the kind of its
    scale.
    """

    path: str
    layer: str
    weight_bits: int
    weight_codes: int | None
    input_bits: int
    input_codes: int | None
    zero_point: int | None
    scale: str

    def cells(self) -> tuple[str, ...]:
        def width(bits: int, codes: int | None) -> str:
            return "float" if codes is None else f"{bits} ({codes} codes)"

        zero = "" if self.zero_point is None else str(self.zero_point)
        return (
            self.path,
            self.layer,
            width(self.weight_bits, self.weight_codes),
            width(self.input_bits, self.input_codes),
            zero,
            self.scale,
        )


class Summary(list[Row]):
    """The rows of a model, printed as a table with a line of totals."""

    def __str__(self) -> str:
        head = ("layer", "type", "weight bits", "input bits", "zero", "scale")
        table = [head, *(row.cells() for row in self)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        quantized = sum(
            row.weight_codes is not None or row.input_codes is not None for row in self
        )
        kinds = {
            kind: sum(row.scale == kind for row in self)
            for kind in {row.scale for row in self}
            if kind
        }
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        lines.append(
            f"{quantized} of {len(self)} layers quantized"
            + (f"; scales: {counts}" if counts else "")
        )
        return "\n".join(lines)


def scale_kind(quantizer: ActivationQuantizer) -> str:
    """What the table calls the scale: ``pending auto``, ``temporal``, ``static``, ..."""
    scale = quantizer.scale
    if scale.kind == "pending":
        return f"pending {quantizer.wanted}"
    if isinstance(scale, TableScale) and scale.static:
        return "static"
    return scale.kind


def _row(path: str, layer: str, weight: nn.Module | None, activation: nn.Module | None) -> Row:
    weight_grid = getattr(weight, "grid", None)
    quantizer = activation if isinstance(activation, ActivationQuantizer) else None
    return Row(
        path,
        layer,
        weight_grid.bits if weight_grid else FLOAT,
        weight_grid.codes if weight_grid else None,
        quantizer.grid.bits if quantizer else FLOAT,
        quantizer.grid.codes if quantizer else None,
        quantizer.grid.zero_point if quantizer else None,
        scale_kind(quantizer) if quantizer else "",
    )


def summary(model: nn.Module) -> Summary:
    """The layer table of a model: every quantized layer, and every one of a quantizable type left
    in float.
    """
    rows = Summary()
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer):
            rows.append(
                _row(path, type(module).__name__, module.weight_quantizer, module.input_quantizer)
            )
        elif isinstance(module, QuantAttention):
            rows += [
                _row(f"{path}.{operand}", type(module).__name__, None, module.quantizer(operand))
                for operand in OPERANDS
            ]
        elif type(module) in QUANTIZED and ".scale." not in f".{path}.":
            rows.append(_row(path, type(module).__name__, None, None))
    return rows
