"""What every quantized layer shares: two child quantizers, and the way from a float layer and
back.

``weight`` and ``bias`` keep their names, so float checkpoints load. ``nn.Identity`` in place of a
quantizer leaves that operand in float. A frozen layer may hold ``codes`` in the place of
``weight``, which is formed from them whenever it is read: models cast to the dtype of a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.structure import StructuredLayer
from tdquant.quantizers import CodedWeight, FrozenWeight, ShiftedWeight, WeightQuantizer

QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {}
"""Quantized class of every float class that can be quantized. Registered by subclassing
QuantLayer.
"""


INPUT = ".input_quantizer"
"""What the path of a layer's activation quantizer ends with."""


class QuantLayer(nn.Module):
    """Mixin before a torch layer: ``class QuantLinear(QuantLayer, nn.Linear)``.

    A subclass names the constructor arguments that a copy needs, and how operands combine.
    """

    geometry: ClassVar[tuple[str, ...]] = ()
    weight: Any
    bias: Any
    codes: Any
    input_quantizer: Any
    weight_quantizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_quantizer = nn.Identity()
        self.weight_quantizer = nn.Identity()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        floats = [base for base in cls.__bases__ if not issubclass(base, QuantLayer)]
        # Only what names QuantLayer itself: torch.export makes classes of registered layers and
        # of its own proxies.
        if cls.geometry and floats and QuantLayer in cls.__bases__:
            QUANTIZED[floats[0]] = cls  # type: ignore[index]

    @classmethod
    def from_float(cls, layer: nn.Module) -> QuantLayer:
        """The quantized layer over the very parameters of ``layer``, with Identity quantizers."""
        kwargs = {name: getattr(layer, name) for name in cls.geometry}
        new = cls(**kwargs, bias=layer.bias is not None, device="meta")
        new.weight, new.bias = layer.weight, layer.bias  # type: ignore[assignment]
        new.train(layer.training)
        return new

    def to_float(self) -> nn.Module:
        """The float layer over the very parameters of this one."""
        kind = next(k for k, quantized in QUANTIZED.items() if quantized is type(self))
        kwargs = {name: getattr(self, name) for name in self.geometry}
        layer: Any = kind(**kwargs, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def with_weight(self, weight: Tensor, where: str = "") -> QuantLayer:
        """The layer with another weight of its shape: bias and input quantizer are the very ones
        of this layer, the weight's steps are found anew.

        Arguments:
            weight: The weight.
            where: What the layer is called in errors.

        Raises:
            ConversionError: The weight is frozen, not finite, or zero throughout.
        """
        old = self.weight_quantizer
        if isinstance(old, FrozenWeight):
            raise ConversionError(
                "its weight is frozen",
                where=where or type(self).__name__,
                why="another weight needs codes of its own, and only the float weight has them",
                fix="rewrite the layer before tdq.freeze, of a model that holds no codes",
            )
        new = type(self).from_float(self)
        new.weight = nn.Parameter(weight, self.weight.requires_grad)
        new.input_quantizer = self.input_quantizer
        if isinstance(old, WeightQuantizer):
            new.weight_quantizer = old.refitted(new.weight, where)
        return new.train(self.training)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "codes" in self._parameters:
            return self.weight_quantizer(self.codes)
        return super().__getattr__(name)

    def hold_codes(self, codes: Tensor, quantizer: CodedWeight) -> None:
        """Has the layer hold its weight as codes ``(C, *)``, int8 or int16, in place; codes of
        groups are times their multipliers.
        """
        # Behind the bias: ``next(layer.parameters())`` is of the type that the layer computes in.
        del self._parameters["weight"]
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.weight_quantizer = quantizer

    def hold_numbers(self) -> None:
        """Has the layer hold its weight as numbers if it holds codes, in place."""
        if "codes" in self._parameters:
            weight, coded = self.weight, self.weight_quantizer
            del self._parameters["codes"]
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.weight_quantizer = FrozenWeight(coded.grid, coded.step, coded.groups)

    def weight_codes(self, path: str = "") -> Tensor:
        """The codes of a frozen weight, int32 of its shape, times the multipliers of groups.

        Arguments:
            path: Of the layer, for errors.

        Raises:
            FreezeError: The weight does not lie on the grid: it was changed after freezing.
        """
        if "codes" in self._parameters:
            return self.codes.int()
        return self.weight_quantizer.codes(self.weight, path)

    def forward(self, input: Tensor) -> Tensor:
        """The layer on fake-quantized operands."""
        held = self.codes if "codes" in self._parameters else self.weight
        x, quantizer = self.input_quantizer(input), self.weight_quantizer
        learns = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
        if learns and "codes" in self._parameters:
            return quantizer.multiply(held, partial(self._product, x))
        return self._product(x, quantizer(held))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.combine(x.to(weight.dtype), weight)

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own product of an input and a weight, with its bias."""
        raise NotImplementedError


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Every quantized layer below a model with its path."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            yield name, module


@torch.no_grad()
def fold_shifts(model: nn.Module) -> None:
    """Moves the weights of layers to the codes that were decided for them, in place, where
    rounding to nearest finds them.
    """
    for _, layer in quantized_layers(model):
        if isinstance(quantizer := layer.weight_quantizer, ShiftedWeight):
            layer.weight.copy_(quantizer.shifted(layer.weight))
            layer.weight_quantizer = quantizer.plain()


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts ``new`` wherever ``old`` is a child below the model: a shared layer has several
    parents.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def shared_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters that several modules below a model have."""
    owned = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    return {key for key, count in Counter(owned).items() if count > 1}


def keep_layers_called(model: nn.Module) -> None:
    """Has torch's transformer layers call the quantized and rewritten layers in them. In
    evaluation they would hand the weights to a fused kernel, which they do not where there is a
    hook.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(part, QuantLayer | StructuredLayer) for part in module.modules()
        ):
            module.register_forward_pre_hook(_nothing)


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook that does nothing, and is there."""
