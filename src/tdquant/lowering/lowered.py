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

import torch
from torch import Tensor, nn

from tdquant.clock import clock_of, remove_clock
from tdquant.errors import FreezeError
from tdquant.freezing import is_frozen
from tdquant.layers import QuantLayer, quantized_layers, replace_module
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.layers.correction import correction_of
from tdquant.lowering import labels
from tdquant.lowering.calls import Call
from tdquant.lowering.layer import LoweredLayer
from tdquant.lowering.operand import Operand, PrecomputedScale, StepValues
from tdquant.lowering.operation import attention_reason
from tdquant.model_summary import Row, summary
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, activation_quantizers
from tdquant.scales import BankedScale, ScaleBank, bank_tables
from tdquant.support.hooks import check_onloaded
from tdquant.support.memory import trim_heap
from tdquant.support.sharing import copy_sharing_tensors


class Lowered(nn.Module):
    """The graph's root: ``(input, ...) -> (output, ...)`` over tensors alone.

    Arguments:
        model: The lowered copy.
        call: How tensors become its arguments.
        banks: Its tables.
        values: Where operands read their steps.
        rows: Its layer table.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        banks: list[ScaleBank],
        values: StepValues,
        rows: list[Row],
    ) -> None:
        super().__init__()
        self.denoiser, self.call, self.values, self.rows = model, call, values, rows
        self.banks = nn.ModuleList(banks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.call.tensors, tensors, strict=True))
        time = self.values.timestep = named[self.call.timestep]
        self.values.banks = {i: bank(time).unbind(0) for i, bank in enumerate(self.banks)}
        outputs = self.call.flat(self.denoiser(**self.call.arguments(named)))
        return tuple(self._marked(output, named) for output in outputs)

    def _marked(self, output: Tensor, named: dict[str, Tensor]) -> Tensor:
        """The output, with NaN for samples with an input that is not finite."""
        if not output.is_floating_point():
            return output
        for name, tensor in named.items():
            if tensor.is_floating_point() and name in self.call.batched:
                nothing = (tensor * 0).flatten(1).sum(1) if tensor.ndim > 1 else tensor * 0
                output = output + nothing.reshape(-1, *[1] * (output.ndim - 1))
        return output


class LoweredAttention(QuantAttention):
    """Attention products of Operands; a subclass says how their codes are multiplied."""

    signed = False
    """Whether integer kernels want the second operand signed, as weights are."""

    def operand(self, name: str) -> Operand:
        """The operand of a name."""
        found = self.quantizer(name)
        assert isinstance(found, Operand)
        return found

    def reason(self, left: str, right: str) -> str:
        """Why the product of two operands is none of 8-bit codes, or empty."""
        return attention_reason(self.operand(left).codes, self.operand(right).codes, self.signed)

    def kernels(self) -> dict[str, tuple[str, str]]:
        """What runs the product that each operand takes part in, and a note."""
        found: dict[str, tuple[str, str]] = {}
        for pair in (OPERANDS[:2], OPERANDS[2:]):
            reason = self.reason(*pair)
            kernel = (labels.FLOAT, reason) if reason else (labels.INT8, "")
            found |= dict.fromkeys(pair, kernel)
        return found

    def product(self, left: str, a: Tensor, right: str, b: Tensor) -> Tensor:
        one, other = self.operand(left), self.operand(right)
        if self.reason(left, right):
            return one(a) @ other(b)
        s, s_other = one.step(a), other.step(b)
        # Keys come transposed.
        sums = self.multiply((one, a, s), (other, b, s_other), turned=left == OPERANDS[0])
        return sums * (s * s_other)

    def multiply(self, left: Factor, right: Factor, turned: bool) -> Tensor:
        """Sums of products of codes, ``(B, heads, N, K)`` by ``(B, heads, K, M)``.

        Arguments:
            left: The first operand, its input and its step.
            right: The second.
            turned: Whether the second is the transpose of what lies in memory.
        """
        raise NotImplementedError


Factor = tuple[Operand, Tensor, Tensor]
Layer = Callable[[QuantLayer, Operand | None, str], LoweredLayer]
Attention = Callable[[dict[str, nn.Module]], LoweredAttention]


def require_frozen(model: nn.Module, done: str, fix: str) -> None:
    """Raises the error of a model that cannot be lowered.

    Arguments:
        model: The model.
        done: What was to be done with it: ``"exported"``.
        fix: The call that does it.

    Raises:
        FreezeError: The model is quantized but not frozen.
        ConversionError: The model is not quantized, or its weights are offloaded.
    """
    clock_of(model)
    if not is_frozen(model):
        raise FreezeError(f"only a frozen model can be {done}", fix=fix)
    check_onloaded(model, fix.partition("(")[0])


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
    correction = correction_of(model)
    holders = [q for _, q in activation_quantizers(model)] + ([correction] if correction else [])
    bank_tables(holders)
    found = dict.fromkeys(h.scale.bank for h in holders if isinstance(h.scale, BankedScale))
    banks, values = list(found), StepValues()
    for bank in banks:
        _keep_variable(bank)
    if correction is not None:
        correction.scale = PrecomputedScale(correction.scale, values, banks)  # type: ignore[arg-type]
        correction.clock = values  # type: ignore[assignment]

    def operand(quantizer: nn.Module) -> Operand | None:
        if isinstance(quantizer, ActivationQuantizer):
            return Operand(quantizer, values, banks)
        return None

    kernels: dict[str, tuple[str, str]] = {}
    for path, old in list(quantized_layers(model)):
        new = layer(old, operand(old.input_quantizer), path)
        replace_module(model, old, new)
        kernels[path] = new.kernel
        trim_heap()  # of what finding the codes took
    for path, old in list(model.named_modules()):
        if isinstance(old, QuantAttention):
            products = attention({name: operand(old.quantizer(name)) for name in OPERANDS})  # type: ignore[misc]
            replace_module(model, old, products)
            kernels |= {f"{path}.{name}": kernel for name, kernel in products.kernels().items()}
    rows = [row.on(*kernels.get(row.path, (labels.FLOAT,))) for row in table]
    return Lowered(model.eval().requires_grad_(False), call, banks, values, rows)


def _keep_variable(bank: ScaleBank) -> None:
    """Gives a bank of static scales a second, equal row: steps that do not depend on the input
    would be folded into constants, and engines turn a division by a constant into a product, which
    rounds ties to the other side.
    """
    if len(bank.knots) == 1:
        bank.knots = torch.tensor([0.0, 1.0], dtype=torch.float32)
        bank.steps = bank.steps.repeat(2, 1)
        bank.first = 0
