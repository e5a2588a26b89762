"""What holds for the calling thread alone while it builds modules. Replacing a method of nn.Module
or seeding torch's global generator would reach the modules of other threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILL: set[Any] = {
    Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_,
    Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_,
    nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_,  # they are dispatched themselves
}  # fmt: skip
_MAKE: set[Any] = {torch.rand, torch.randn, torch.randint, torch.randperm}


class DrawingFrom(TorchFunctionMode):
    """Has what is drawn on the CPU come from a generator instead of torch's global one.

    Arguments:
        generator: The generator.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if options.get("generator") is None:
            device = None
            if func in _FILL:
                device = (args[0] if args else options["tensor"]).device
            elif func in _MAKE:
                device = torch.device(options.get("device") or torch.get_default_device())
            if device is not None and device.type == "cpu":
                options["generator"] = self.generator
        return func(*args, **options)


class EmptyOnMeta(TorchFunctionMode):
    """Has ``torch.empty``, by which torch's layers allocate parameters, allocate nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)
