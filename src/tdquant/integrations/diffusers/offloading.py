"""Group offloading of diffusers: a module is loaded while it runs, and its scales with it."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import nn

from tdquant.clock import Clock, is_quantized
from tdquant.errors import BackendError, ConversionError
from tdquant.integrations.importing import wrap_method
from tdquant.layers import QuantLayer
from tdquant.support.hooks import GROUPS

_COVERED: WeakSet[nn.Module] = WeakSet()
"""Modules in a quantized layer that is offloaded, as a whole."""


def follow_groups() -> None:
    """Has clocks find steps layer by layer where modules are offloaded in groups: before a call
    the tensors of scales are not there. What is in a quantized layer has no group of its own, of
    tensors that have gone with the layer.
    """
    from diffusers.hooks.hooks import HookRegistry

    def register(method: Any, self: Any, hook: Any, name: str) -> None:
        module = self._module_ref
        if name == GROUPS and module in _COVERED:
            return
        method(self, hook, name)
        if name == GROUPS:
            _by_layer(module, True)

    def remove(method: Any, self: Any, name: str, recurse: bool = True) -> None:
        method(self, name, recurse)
        if name == GROUPS:
            _by_layer(self._module_ref, False)

    wrap_method(HookRegistry, "register_hook", register)
    wrap_method(HookRegistry, "remove_hook", remove)


def _by_layer(module: nn.Module, offloaded: bool) -> None:
    for part in module.modules():
        if isinstance(module, QuantLayer) and part is not module:
            (_COVERED.add if offloaded else _COVERED.discard)(part)
        clock = getattr(part, "clock", None)
        if isinstance(clock, Clock):
            clock.by_layer = offloaded


def check_moving() -> None:
    """Makes ``enable_group_offload`` raise BackendError for a compiled model, and
    ``enable_layerwise_casting`` ConversionError for a quantized one, whose weights lie on grids.
    """
    from diffusers.models.modeling_utils import ModelMixin

    def offload(method: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        if hasattr(self, "tdq_backend"):
            raise BackendError(
                "a compiled model is not offloaded in groups",
                where=type(self).__name__,
                why="its kernels hold what they multiply",
                fix="the frozen model, or another model of the pipeline",
            )
        method(self, *args, **kwargs)

    def cast(method: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        if is_quantized(self):
            raise ConversionError(
                "a quantized model is not cast layer by layer",
                where=type(self).__name__,
                why="its weights would leave their grids, and scales lose their float32",
                fix="a loaded model, which holds codes: tdq.load(folder, compact=True)",
            )
        method(self, *args, **kwargs)

    wrap_method(ModelMixin, "enable_group_offload", offload)
    wrap_method(ModelMixin, "enable_layerwise_casting", cast)
