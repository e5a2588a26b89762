r"""A copy of a frozen model for other engines: what depends on the timestep is looked up once, in
the graph, and every quantized operand is codes and a step.

    S = bank(t)                                         one gather for the whole model
    q = clip(round(x / s), low, high)                   whole numbers, counted from zero
    y = s s_w (q * q_w) + b                             the product sees constants only

The division comes before rounding and is a true one, so that ties fall as in the frozen model; the
product is over integers, hence exact; s and s_w multiply after it. That is how an engine that only
knows constant scales runs temporal ones at the cost of static ones.

Where code 0 stands for a real number o (``OffsetQuantizer``), padded zeros are no code:

    y = s s_w (q * q_w) + o s_w (1 * q_w) + b           1 * q_w counts what lies inside
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import clock_of, remove_clock
from tdquant.errors import FreezeError
from tdquant.freezing import is_frozen
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.layers.gain import gain_of
from tdquant.lowering.calls import Call
from tdquant.lowering.layer import LoweredLayer
from tdquant.lowering.operand import FoundScale, Operand, Steps
from tdquant.model_summary import Row, summary
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, activation_quantizers
from tdquant.scales import BankedScale, ScaleBank, bank_tables
from tdquant.support.memory import trim_heap
from tdquant.support.sharing import copy_sharing_tensors


class Lowered(nn.Module):
    """The graph's root: ``(input, ...) -> (output, ...)`` over tensors alone.

    Arguments:
        model: The lowered copy.
        call: How tensors become its arguments.
        banks: Its tables.
        steps: Where its operands read.
        rows: What the layer table says of it.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        banks: list[ScaleBank],
        steps: Steps,
        rows: list[Row],
    ) -> None:
        super().__init__()
        self.denoiser, self.call, self.steps, self.rows = model, call, steps, rows
        self.banks = nn.ModuleList(banks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.call.tensors, tensors, strict=True))
        time = named[self.call.timestep]
        self.steps.found = {i: bank(time).unbind(0) for i, bank in enumerate(self.banks)}
        outputs = self.call.flat(self.denoiser(**self.call.arguments(named)))
        return tuple(self._marked(output, named) for output in outputs)

    def _marked(self, output: Tensor, named: dict[str, Tensor]) -> Tensor:
        """The output, not a number for samples whose inputs are not: codes cannot say that."""
        if not output.is_floating_point():
            return output
        for name, tensor in named.items():
            if tensor.is_floating_point() and name in self.call.batched:
                nothing = (tensor * 0).flatten(1).sum(1) if tensor.ndim > 1 else tensor * 0
                output = output + nothing.reshape(-1, *[1] * (output.ndim - 1))
        return output


class LoweredAttention(QuantAttention):
    """Attention products of Operands; a subclass says how their codes are multiplied."""

    def operand(self, name: str) -> Operand:
        """The operand of a name."""
        found = self.quantizer(name)
        assert isinstance(found, Operand)
        return found

    def kernels(self) -> dict[str, tuple[str, str]]:
        """What runs the product that each operand takes part in, and a note."""
        return dict.fromkeys(OPERANDS, ("float", ""))


Layer = Callable[[QuantLayer, Operand | None, str], LoweredLayer]
Attention = Callable[[dict[str, nn.Module]], LoweredAttention]


def require_frozen(model: nn.Module) -> None:
    """Raises what an exporter raises for a model that is not frozen.

    Raises:
        FreezeError: The model is quantized but not frozen.
        ConversionError: The model is not quantized.
    """
    clock_of(model)
    if not is_frozen(model):
        raise FreezeError(
            "only a frozen model can be exported", fix="tdq.export(tdq.freeze(model), path, ...)"
        )


def float32_copy(frozen: nn.Module) -> nn.Module:
    """A copy in float32 on the CPU, as engines compute. Weights that a half-precision model
    rounded are codes times steps again. What is in float32 there, or codes, is shared with the
    model: nothing of it may be changed in place.
    """
    model = copy_sharing_tensors(frozen)
    for path, layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if type(quantizer) is FrozenWeight and layer.weight.dtype != torch.float32:
            weight = layer.weight_codes(path) * quantizer.scale(layer.weight)
            layer.weight = nn.Parameter(weight, requires_grad=False)
    # As nn.Module's own: diffusers' refuse quantized models.
    return nn.Module.float(nn.Module.cpu(model))


def lower(model: nn.Module, call: Call, layer: Layer, attention: Attention) -> Lowered:
    """Turns a frozen model into its lowered form, in place.

    Arguments:
        model: A copy of a frozen model, from ``float32_copy``.
        call: An example call of it.
        layer: The engine's LoweredLayer.
        attention: The engine's processor, made of Operands.

    Raises:
        FreezeError: A weight was changed after freezing.
    """
    table = summary(model)
    remove_clock(model)
    gain = gain_of(model)
    holders = [q for _, q in activation_quantizers(model)] + ([gain] if gain else [])
    bank_tables(holders)
    found = dict.fromkeys(h.scale.bank for h in holders if isinstance(h.scale, BankedScale))
    banks, steps = list(found), Steps()
    for bank in banks:
        _keep_variable(bank)
    if gain is not None:
        gain.scale = FoundScale(gain.scale, steps, banks)  # type: ignore[arg-type]

    def operand(quantizer: nn.Module) -> Operand | None:
        if isinstance(quantizer, ActivationQuantizer):
            return Operand(quantizer, steps, banks)
        return None

    kernels: dict[str, tuple[str, str]] = {}
    for path, old in list(quantized_layers(model)):
        new = layer(old, operand(old.input_quantizer), path)
        replace_module(model, old, new)
        kernels[path] = new.kernel
        trim_heap()  # of what finding the codes took
    for path, old in list(model.named_modules()):
        if isinstance(old, QuantAttention):
            block: Any = model.get_submodule(path.rpartition(".")[0])
            products = attention({name: operand(old.quantizer(name)) for name in OPERANDS})  # type: ignore[misc]
            block.set_processor(products)
            kernels |= {f"{path}.{name}": kernel for name, kernel in products.kernels().items()}
    rows = [row.on(*kernels.get(row.path, ("float",))) for row in table]
    return Lowered(model.eval().requires_grad_(False), call, banks, steps, rows)


def _keep_variable(bank: ScaleBank) -> None:
    """Gives a bank of static scales a second, equal row: steps that do not depend on the input
    would be folded into constants, and engines turn a division by a constant into a product, which
    rounds ties to the other side.
    """
    if len(bank.knots) == 1:
        bank.knots = torch.tensor([0.0, 1.0])
        bank.steps = bank.steps.repeat(2, 1)
        bank.first = 0
