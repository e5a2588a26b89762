"""The layer table: what became of every layer of a quantized model.

A backend tells here what it made of each layer: a module that it puts in the place of frozen ones
keeps their rows, with the kernel that it runs them on, as ``rows``.

    self.rows = [layer_row(path, layer).on("int8", "7-bit inputs: no sum saturates")]

A session that has no modules of its own keeps the rows of the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from tdquant.layers import QuantLayer
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.quantizers import ActivationQuantizer
from tdquant.recipe import FLOAT
from tdquant.scales import TableScale
from tdquant.scales.bank import BankedScale
from tdquant.support.tables import text_table


@dataclass(frozen=True)
class Row:
    """One layer: its path and class, bits and codes of weight and input, the kind of its scale,
    its number of weights and how many of them share a multiplier (0: none do), what remedies it
    has and its multiply-accumulates, if calibration counted them; in a compiled model also the
    kernel that runs it, and what there is to say about that.
    """

    path: str
    layer: str
    weight_bits: int
    weight_codes: int | None
    input_bits: int
    input_codes: int | None
    zero_point: int | None
    scale: str
    kernel: str = ""
    note: str = ""
    weights: int = 0
    group: int = 0
    remedies: Sequence[str] = ()
    macs: int = 0

    def on(self, kernel: str, note: str = "") -> Row:
        """The same layer on a kernel, such as ``"int8"`` or ``"float"``; the note says why."""
        return replace(self, kernel=kernel, note=note)

    def cells(self, macs: int) -> tuple[str, ...]:
        """Its cells of the table, where all layers have so many multiply-accumulates."""
        return (
            self.path,
            self.layer.removeprefix("Quant"),
            _width(self.weight_bits, self.weight_codes, 2**self.weight_bits - 1),
            _width(self.input_bits, self.input_codes, 2**self.input_bits),
            "" if self.zero_point is None else str(self.zero_point),
            self.scale,
            f"{100 * self.macs / macs:.1f} %" if self.macs else "",
            " ".join(["groups"] * (self.group > 0) + list(self.remedies)),
            self.kernel,
            self.note,
        )


def _width(bits: int, codes: int | None, usual: int) -> str:
    """Bits, and how many codes there are where that is not the usual number."""
    if codes is None:
        return "float"
    return str(bits) if codes == usual else f"{bits} ({codes} codes)"


HEAD = (
    "layer", "type", "weight", "input", "zero", "scale", "work", "remedies", "kernel", "note",
)  # fmt: skip


class Summary(list[Row]):
    """The rows of a model, printed as a table with a few lines about the whole.

    Attributes:
        backend: Which backend runs the model and why, or empty.
        roles: How layers got their roles, first, last or time path, or empty if it is not known.
        remedies: What calibration tried and kept, and what the model costs, or empty.
    """

    backend: str = ""
    roles: str = ""
    remedies: str = ""

    def __str__(self) -> str:
        return self.table()

    def table(self, width: int | None = None) -> str:
        """The table and what is said about the whole.

        Arguments:
            width: Characters of the terminal, to which paths are shortened; None shortens nothing.
        """
        macs = sum(row.macs for row in self)
        cells = [row.cells(macs) for row in self]
        shown = [i for i in range(len(HEAD)) if i < 6 or any(line[i] for line in cells)]
        head = [HEAD[i] for i in shown]
        rows = [[line[i] for i in shown] for line in cells]
        right = [head.index(name) for name in ("zero", "work") if name in head]
        return f"{text_table(rows, head, right, width)}\n{self.footer}"

    @property
    def footer(self) -> str:
        """What is said about the whole."""
        quantized = [
            row for row in self if row.weight_codes is not None or row.input_codes is not None
        ]
        total = f"{len(quantized)} of {len(self)} layers quantized"
        if weights := sum(row.weights for row in self):
            few = [row for row in self if row.weight_codes is not None and row.weights]
            count = sum(row.weights for row in few)
            total += f", {100 * count / weights:.1f} % of {weights:,} weights"
            if count:
                bits = sum(row.weight_bits * row.weights for row in few) / count
                total += f" at {bits:.3g} bits"
        total += _counts("scales", [row.scale for row in self])
        total += _counts("kernels", [row.kernel for row in self])
        backend = f"backend: {self.backend}" if self.backend else ""
        return "\n".join(filter(None, [self.roles, self.remedies, total, backend]))


def _counts(label: str, words: list[str]) -> str:
    found = sorted(Counter(word for word in words if word).items())
    return f"; {label}: " + ", ".join(f"{n} {word}" for word, n in found) if found else ""


def scale_kind(quantizer: ActivationQuantizer) -> str:
    """What the table calls the scale: ``pending auto``, ``temporal``, ``static``, ..."""
    scale = quantizer.scale
    if scale.kind == "pending":
        return f"pending {quantizer.wanted}"
    if isinstance(scale, BankedScale):
        steps = scale.bank.steps[:, scale.column]
        return "static" if bool((steps == steps[0]).all()) else TableScale.kind
    if isinstance(scale, TableScale) and scale.static:
        return "static"
    return scale.kind


def _row(
    path: str,
    layer: str,
    weight: nn.Module | None,
    activation: nn.Module | None,
    weights: int = 0,
) -> Row:
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
        weights=weights,
        group=getattr(weight, "group", 0),
    )


def layer_row(path: str, layer: QuantLayer) -> Row:
    """The row of a quantized layer."""
    held = layer._parameters.get("codes", layer._parameters.get("weight"))
    count = 0 if held is None else held.numel()
    return _row(path, type(layer).__name__, layer.weight_quantizer, layer.input_quantizer, count)


def count_weights(module: nn.Module) -> int:
    """Numbers in the weights that a module multiplies by, of two dimensions and more: of its own,
    not of modules in it, other than those that parametrize it.
    """
    if is_parametrized(module):
        return sum(p.numel() for p in module.parameters())
    named = module._parameters.items()
    return sum(p.numel() for n, p in named if p is not None and p.ndim > 1 and "weight" in n)


def attention_rows(path: str, processor: QuantAttention) -> list[Row]:
    """The rows of quantized attention products, one for each operand."""
    name = type(processor).__name__
    return [
        _row(f"{path}.{operand}", name, None, processor.quantizer(operand)) for operand in OPERANDS
    ]


def summary(model: nn.Module) -> Summary:
    """The layer table of a model: every quantized layer, and every other module with weights of
    its own, which stay in float; of a compiled model also the kernel of each.
    """
    rows, told = Summary(), "-"
    for path, module in model.named_modules():
        lowered = getattr(module, "rows", None)
        if f"{path}.".startswith(told):
            continue  # a part of what has told its rows
        if isinstance(lowered, list) and lowered and isinstance(lowered[0], Row):
            rows += lowered
            told = f"{path}." if path else ""
        elif isinstance(module, QuantLayer):
            rows.append(layer_row(path, module))
        elif isinstance(module, QuantAttention):
            rows += attention_rows(path, module)
        elif (count := count_weights(module)) and ".scale." not in f".{path}.":
            rows.append(_row(path, type(module).__name__, None, None, count))
    if any(row.kernel for row in rows):  # compiled: what no backend touched runs as it was
        rows[:] = [row if row.kernel else row.on(_untouched(row)) for row in rows]
    rows.backend = str(getattr(model, "tdq_backend", ""))
    roles, remedies = (
        getattr(getattr(model, "tdq", None), name, None) for name in ("roles", "remedies")
    )
    if remedies is not None:
        rows.remedies = str(remedies)
        rows[:] = [
            replace(row, remedies=found, macs=remedies.macs.get(row.path, 0))
            for row in rows
            for found in [remedies.layers.get(row.path, ())]
        ]
    if roles is not None:
        rows.roles = str(roles)
    elif any(row.scale.startswith("pending") for row in rows):
        rows.roles = "roles of layers by name, until calibration follows the data flow of a call"
    return rows


def _untouched(row: Row) -> str:
    return "float" if row.weight_codes is None and row.input_codes is None else "simulated"
