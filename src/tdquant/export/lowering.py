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
    CodedWeight,
    FrozenWeight,
    activation_quantizers,
)
from tdquant.recipe import FLOAT
from tdquant.scales import BankedScale, ScaleBank, bank_tables
from tdquant.sharing import copy_sharing_tensors
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
    sums: Tensor | None

    def __init__(self, layer: QuantLayer, operand: Operand | None, path: str) -> None:
        super().__init__()
        self.operand, self.path = operand, path
        self.kind = type(layer).__name__
        self.convolves = isinstance(layer, (QuantConv1d, QuantConv2d))
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
            codes = layer.weight_codes(path)
            self.largest = int(codes.abs().max())
            steps = frozen.step.reshape(-1, *[1] * (codes.ndim - 1))
            self.register_buffer("weight_step", steps.expand(len(codes), *steps.shape[1:]).clone())
            codes = codes.to(torch.int8) if self.bits <= 8 else codes.float()
        else:
            codes = layer.weight.detach().float()
            self.register_buffer("weight_step", None)
        self.channel = (-1, *[1] * (codes.ndim - 2)) if self.convolves else (-1,)
        self.products = codes[0].numel()  # in one sum
        self.taps = tuple(codes.shape[2:])
        self.register_buffer("weight_codes", codes.contiguous())
        # Models ask ``next(module.parameters())`` and their layers what type to cast to.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        for name in layer.geometry:
            if not hasattr(self, name):
                setattr(self, name, getattr(layer, name))
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        sums = codes.float().sum(1) if self.integer else None
        self.register_buffer("sums", sums)

    @property
    def integer(self) -> bool:
        """Whether both operands have codes that integer kernels take, and 32 bits their sums."""
        if self.bits > 8 or self.operand is None or self.operand.codes > INT8_CODES:
            return False
        return self.products * (self.operand.codes - 1) * self.largest < 2**31

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
            assert self.operand is not None
            if self.operand.offset:
                y = y + self.operand.offset * self.ones_product(x)
        return y if self.bias is None else y + self.bias.reshape(self.channel)

    def product(self, x: Tensor) -> Tensor:
        """``s s_w (q * q_w)`` of an input that is padded already, unless with zeros."""
        raise NotImplementedError

    def ones_product(self, x: Tensor) -> Tensor:
        r"""``s_w (1 * q_w)`` for an input of the size of x: what a code of 1 everywhere adds. At
        the border a convolution sees fewer ones,

            (1 * q_w)_{n i j} = \sum_{k l} R_{i k} T_{n k l} C_{j l}

        with T the codes summed over input channels, and R and C 1 where a tap lies inside.
        """
        assert self.sums is not None
        sums = self.sums * self.weight_step.reshape(-1, *[1] * (self.sums.ndim - 1))
        if not self.convolves:
            return sums
        if not any(self.zeros):
            return sums.flatten(1).sum(1).reshape(self.channel)
        if self.kind == "QuantConv1d":
            return (sums[:, None] * self._inside(x, 0)).sum(-1)
        # Not as products of matrices: OpenVINO 2026.4 fails at those of free sizes.
        rows = (sums[:, :, None] * self._inside(x, 1)).sum(-1)
        return (rows[:, None] * self._inside(x, 0)[..., None]).sum(2)

    def _inside(self, x: Tensor, axis: int) -> Tensor:
        """Which taps of each output lie inside x along a spatial axis, ``(outputs, taps)``."""
        size, taps = x.shape[2 + axis], self.taps[axis]
        after, before = self.zeros[::-1][2 * axis : 2 * axis + 2]
        stride, dilation = self.stride[axis], self.dilation[axis]
        outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
        start = torch.arange(outputs, device=x.device)[:, None] * stride - before
        place = start + torch.arange(taps, device=x.device) * dilation
        return ((place >= 0) & (place < size)).to(torch.float32)

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
        held = not isinstance(quantizer, FrozenWeight) or isinstance(quantizer, CodedWeight)
        if not held and layer.weight.dtype != torch.float32:
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
