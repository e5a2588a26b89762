"""Running a quantized model in float: observers stand in for its activation quantizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from tdquant.clock import is_quantized
from tdquant.quantizers import (
    ActivationQuantizer,
    CodedWeight,
    FrozenWeight,
    activation_quantizers,
)
from tdquant.scales import DynamicScale, TableScale


class Observer(nn.Module):
    """Passes activations on in float and shows them to ``look(x, timestep)``.

    Arguments:
        quantizer: The quantizer that it stands in for.
        look: Gets the tensor and the timestep ``()`` or ``(B,)``, and returns the tensor to pass
            on.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, look: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.clock, self.look = quantizer.clock, look

    def forward(self, x: Tensor) -> Tensor:
        return self.look(x, self.clock.read())


@contextlib.contextmanager
def observing(
    model: nn.Module,
    quantizers: dict[str, ActivationQuantizer],
    look: Callable[[str, Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """The model in float: observers in place of activation quantizers, and weights unquantized.
    Of a weight that is held as its codes there is nothing else: it stays.

    Arguments:
        model: The quantized model.
        quantizers: Its activation quantizers by path.
        look: Gets the quantizer's path, the tensor and the timestep, and returns the tensor to
            pass on.
    """
    weights = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "weight_quantizer"
        and not isinstance(module, (nn.Identity, CodedWeight))
    }
    was_training = model.training
    model.eval()
    try:
        for name in weights:
            model.set_submodule(name, nn.Identity())
        for name, quantizer in quantizers.items():
            model.set_submodule(name, Observer(quantizer, partial(look, name)))
        yield
    finally:
        for name, module in (weights | quantizers).items():
            model.set_submodule(name, module)
        for quantizer in quantizers.values():
            quantizer.clock.invalidate_scale_cache()
        model.train(was_training)


@contextlib.contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """A quantized model in float, and unobserved if somebody observes it; a float, frozen or
    compiled one as it is.
    """
    watching = [module for module in model.modules() if isinstance(module, Observer)]
    # Weights may be codes long before activations are calibrated.
    frozen = any(isinstance(module, FrozenWeight) for module in model.modules()) and all(
        isinstance(q.scale, TableScale | DynamicScale) for _, q in activation_quantizers(model)
    )
    if (frozen and not watching) or not is_quantized(model):
        yield
        return
    looks = [observer.look for observer in watching]
    try:
        for observer in watching:
            observer.look = lambda x, timestep: x
        with observing(model, dict(activation_quantizers(model)), lambda name, x, timestep: x):
            yield
    finally:
        for observer, look in zip(watching, looks, strict=True):
            observer.look = look
