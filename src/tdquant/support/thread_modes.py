"""What holds for the calling thread alone, while it builds modules or runs them. Replacing a
method of nn.Module or seeding torch's global generator would reach the modules of other threads.
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
_LIKE: set[Any] = {torch.rand_like, torch.randn_like, torch.randint_like}
_FROM: set[Any] = {torch.bernoulli, torch.normal, torch.multinomial, torch.poisson}
if "generator" in str(torch.rand_like.__doc__):  # which it takes in newer versions
    _FROM |= _LIKE


class _ArgumentsMode(TorchFunctionMode):
    """Changes the arguments of torch's functions."""

    def change(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
        """Changes the options of a call in place, and returns its arguments by position."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        return func(*self.change(func, args, options), **options)


class DrawingFrom(_ArgumentsMode):
    """Draws on the CPU come from a generator instead of torch's global one.

    Arguments:
        generator: The generator.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def change(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
        if options.get("generator") is not None:
            return args
        device = None
        if func in _FILL:
            device = (args[0] if args else options["tensor"]).device
        elif func in _FROM:
            device = next((a.device for a in args if isinstance(a, Tensor)), None)
        elif func in _MAKE:
            device = torch.device(options.get("device") or torch.get_default_device())
        if device is not None and device.type == "cpu":
            options["generator"] = self.generator
        return args


class EmptyOnMeta(_ArgumentsMode):
    """``torch.empty``, by which torch's layers allocate parameters, allocates nothing."""

    def change(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
        if func is torch.empty:
            options["device"] = "meta"
        return args


class BFloat16AsFloat32(_ArgumentsMode):
    """``Tensor.numpy()`` of bfloat16, which NumPy does not have, gives float32."""

    def change(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
        if func is Tensor.numpy and args[0].dtype == torch.bfloat16:
            return args[0].float(), *args[1:]
        return args
