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

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.clock import clock_of
from tdquant.errors import FreezeError
from tdquant.export.calls import Call
from tdquant.export.operand import INT8_CODES, FoundScale, Operand, Steps
from tdquant.frozen import is_frozen
from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer, quantized_layers, replace_module
from tdquant.layers.attention import OPERANDS, QuantAttention
from tdquant.layers.gain import gain_of
from tdquant.quantizers import (
    ActivationQuantizer,
    FrozenWeight,
    activation_quantizers,
)
from tdquant.recipe import FLOAT
from tdquant.scales import BankedScale, ScaleBank, bank_tables
from tdquant.summary import Row, summary


class LoweredLayer(nn.Module):
    """A quantized layer as the engines see it; a subclass says how codes are multiplied.

    Arguments:
        layer: A frozen quantized layer.
        operand: Its input, or None where that stays in float.
        path: Its path, for errors.
    """

    weight_codes: Tensor
    weight_step: Tensor
    bias: Tensor | None
    inside: Tensor | None

    def __init__(self, layer: QuantLayer, operand: Operand | None, path: str) -> None:
        super().__init__()
        self.operand, self.path = operand, path
        self.kind = type(layer).__name__
        self.convolves = isinstance(layer, (QuantConv1d, QuantConv2d))
        self.channel = (-1, *[1] * (layer.weight.ndim - 2)) if self.convolves else (-1,)
        if isinstance(layer, (QuantConv1d, QuantConv2d)):
            self.stride, self.dilation = tuple(layer.stride), tuple(layer.dilation)
            self.groups = layer.groups
            # Of the last dimension first, before and after: what F.pad takes.
            self.padding = [int(n) for n in layer._reversed_padding_repeated_twice]
            self.padding_mode = str(layer.padding_mode)
        frozen = layer.weight_quantizer
        self.bits, self.largest = FLOAT, 0
        if isinstance(frozen, FrozenWeight):
            self.bits = frozen.grid.bits
            codes = frozen.codes(layer.weight, path)
            self.largest = int(codes.abs().max())
            steps = frozen.step.reshape(-1, *[1] * (codes.ndim - 1))
            self.register_buffer("weight_step", steps.expand(len(codes), *steps.shape[1:]).clone())
            codes = codes.to(torch.int8) if self.bits <= 8 else codes.float()
        else:
            codes = layer.weight.detach().float()
            self.register_buffer("weight_step", None)
        self.register_buffer("weight_codes", codes.contiguous())
        # Models ask ``next(module.parameters())`` and their layers what type to cast to.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        for name in layer.geometry:
            if not hasattr(self, name):
                setattr(self, name, getattr(layer, name))
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        inside = None
        if operand is not None and operand.offset and self.integer:
            inside = operand.offset * codes.float().flatten(1).sum(1)
            if self.convolves:
                inside = operand.offset * codes.float().sum(1, keepdim=True)
        self.register_buffer("inside", inside)

    @property
    def integer(self) -> bool:
        """Whether both operands have codes that integer kernels take."""
        return self.bits <= 8 and self.operand is not None and self.operand.codes <= INT8_CODES

    @property
    def kernel(self) -> tuple[str, str]:
        """What runs the product, and a note, for the layer table."""
        return ("int8", "") if self.integer else ("float", "")

    def float_weight(self) -> Tensor:
        """The weight itself, a constant that an engine multiplies out when it loads the graph."""
        if self.weight_step is None:
            return self.weight_codes
        return self.weight_codes.to(torch.float32) * self.weight_step

    @property
    def weight(self) -> Tensor:
        """The weight itself, for models that read it."""
        return self.float_weight()

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.convolves and self.padding_mode != "zeros":
            x = F.pad(x, self.padding, self.padding_mode)
        if not self.integer:
            x = x if self.operand is None else self.operand(x)
            y = self.combine(x, self.float_weight())
        else:
            y = self.product(x)
            if self.inside is not None:
                y = y + self.weight_step.reshape(self.channel) * self.offset_part(x)
        return y if self.bias is None else y + self.bias.reshape(self.channel)

    def product(self, x: Tensor) -> Tensor:
        """``s s_w (q * q_w)`` of an input that is padded already, unless with zeros."""
        raise NotImplementedError

    def offset_part(self, x: Tensor) -> Tensor:
        """``o (1 * q_w)``: at the border a convolution sees fewer ones."""
        assert self.inside is not None
        if not self.convolves:
            return self.inside
        ones = torch.ones_like(x[:1, :1])
        return self.convolve(ones, self.inside, groups=1)

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's product without its bias."""
        return self.convolve(x, weight, self.groups) if self.convolves else F.linear(x, weight)

    def convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The layer's convolution, padded with zeros where it is."""
        padding: Any = self.zeros[1::2][::-1]
        if self.zeros[::2] != self.zeros[1::2]:
            x, padding = F.pad(x, self.zeros), 0
        if self.kind == "QuantConv1d":
            return F.conv1d(x, weight, None, self.stride, padding, self.dilation, groups)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)

    @property
    def zeros(self) -> list[int]:
        """Zeros that the product itself adds around its input, in the order of F.pad."""
        return self.padding if self.padding_mode == "zeros" else [0] * len(self.padding)


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
        self.model, self.call, self.steps, self.rows = model, call, steps, rows
        self.banks = nn.ModuleList(banks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.call.tensors, tensors, strict=True))
        time = named[self.call.timestep]
        self.steps.found = {i: bank(time).unbind(0) for i, bank in enumerate(self.banks)}
        return self.call.flat(self.model(**self.call.arguments(named)))


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
    """A copy in float32 on the CPU: what engines compute in. Weights that a half-precision model
    rounded are codes times steps again.
    """
    model = copy.deepcopy(frozen).cpu()
    weights = []
    for path, layer in quantized_layers(model):
        layer.hold_numbers()
        if isinstance(quantizer := layer.weight_quantizer, FrozenWeight):
            weights.append((layer, quantizer, quantizer.codes(layer.weight, path)))
    nn.Module.float(model)  # diffusers' own refuses quantized models
    with torch.no_grad():
        for layer, quantizer, codes in weights:
            layer.weight.copy_(codes * quantizer.scale(codes))
    return model


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
    clock = clock_of(model)
    clock.remove()
    del model.tdq_clock
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
