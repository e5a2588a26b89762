"""Watching a model while it runs: a quantized one in float, and layers by hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from tdquant.clock import is_quantized
from tdquant.layers.correction import uncorrected
from tdquant.layers.float_bias import float_biases
from tdquant.quantizers import (
    ActivationQuantizer,
    CodedWeight,
    FrozenWeight,
    activation_quantizers,
)
from tdquant.scales import DynamicScale, TableScale
from tdquant.support.hooks import hooked
from tdquant.support.restoring import evaluating

M = TypeVar("M", bound=nn.Module)


class Observer(nn.Module):
    """Stands in for an activation quantizer: calls ``look(x, timestep)``, with the timestep ``()``
    or ``(B,)``, and passes on the tensor that it returns.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, look: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.clock, self.look = quantizer.clock, look

    def forward(self, x: Tensor) -> Tensor:
        return self.look(x, self.clock.read())


def pass_on(name: str, x: Tensor, timestep: Tensor) -> Tensor:
    """The ``look`` that changes nothing."""
    return x


@contextlib.contextmanager
def observing(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    look: Callable[[str, Tensor, Tensor], Tensor] = pass_on,
    rounded: Collection[str] = (),
) -> Iterator[None]:
    """Runs a quantized model in float, with observers in place of activation quantizers, with
    weights unquantized, except those that are held as codes alone, and without corrections of the
    output and of biases.

    Arguments:
        model: The quantized model.
        quantizers: Its activation quantizers by path.
        look: Gets the quantizer's path, the tensor and the timestep, and returns the tensor to
            pass on.
        rounded: Paths of layers whose weights are quantized nevertheless.
    """
    weights = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "weight_quantizer"
        and name.rpartition(".")[0] not in rounded
        and not isinstance(module, (nn.Identity, CodedWeight))
    }
    with evaluating(model), uncorrected(model), float_biases(model):
        try:
            for name in weights:
                model.set_submodule(name, nn.Identity())
            for name, quantizer in quantizers.items():
                model.set_submodule(name, Observer(quantizer, partial(look, name)))
            yield
        finally:
            for name, module in {**weights, **quantizers}.items():
                model.set_submodule(name, module)
            for quantizer in quantizers.values():
                quantizer.clock.invalidate_scale_cache()


@contextlib.contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Runs a quantized model in float, and hides the call from observers that are in place. A
    float, frozen or compiled model runs as it is.
    """
    observers = [module for module in model.modules() if isinstance(module, Observer)]
    # Weights may be codes long before activations are calibrated.
    frozen = any(isinstance(module, FrozenWeight) for module in model.modules()) and all(
        isinstance(q.scale, TableScale | DynamicScale) for _, q in activation_quantizers(model)
    )
    if (frozen and not observers) or not is_quantized(model):
        yield
        return
    looks = [observer.look for observer in observers]
    try:
        for observer in observers:
            observer.look = partial(pass_on, "")
        with observing(model, dict(activation_quantizers(model))):
            yield
    finally:
        for observer, look in zip(observers, looks, strict=True):
            observer.look = look


@contextlib.contextmanager
def watching(
    layers: Mapping[str, M], see: Callable[[str, M, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls ``see(path, layer, x, y)`` whenever one of the layers has turned its input x into y;
    a tensor that it returns is passed on in place of y.
    """

    def hook(path: str) -> Callable[..., Tensor | None]:
        def after(layer: M, args: Any, kwargs: Any, y: Tensor) -> Tensor | None:
            return see(path, layer, next(iter((*args, *kwargs.values()))), y)

        return after

    with hooked(
        [m.register_forward_hook(hook(path), with_kwargs=True) for path, m in layers.items()]
    ):
        yield
