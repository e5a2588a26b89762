"""LoRA and its kin by the loaders of diffusers: what fails leaves a quantized model as it was, and
what a loaded model, which holds codes, or an engine cannot give is told.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from tdquant.clock import is_quantized
from tdquant.errors import ConversionError
from tdquant.integrations.diffusers.config import config_unchanged_on_error
from tdquant.integrations.importing import wrap_method
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.lowering.slot import OnEngine
from tdquant.support.hooks import check_not_on_disk, check_readable
from tdquant.support.restoring import unchanged_on_error

_CHANGES = (
    "unload_lora_weights",
    "fuse_lora",
    "unfuse_lora",
    "set_adapters",
    "disable_lora",
    "enable_lora",
    "delete_adapters",
)
"""What changes the adapters of all components of a pipeline that may have some."""


def check_loading() -> None:
    """Has a quantized model be as it was if an adapter is refused or does not fit."""
    from diffusers.loaders.peft import PeftAdapterMixin

    def load(method: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_quantized(self):
            return method(self, *args, **kwargs)
        # Of a pipeline, diffusers takes accelerate's hooks off meanwhile.
        check = check_not_on_disk if kwargs.get("_pipeline") is not None else check_readable
        check(self, "loading an adapter")
        if kwargs.get("hotswap"):
            _check_unfused(self)
            return method(self, *args, **kwargs)
        with unchanged_on_error(self):
            return method(self, *args, **kwargs)

    wrap_method(PeftAdapterMixin, "add_adapter", load)
    wrap_method(PeftAdapterMixin, "load_lora_adapter", load)


def check_engines() -> None:
    """Has what changes adapters of a pipeline raise EngineAttributeError where the denoiser is a
    graph that computes one: diffusers would pass over it.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin

    def change(method: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        for model in _components(self):
            if isinstance(model, OnEngine):
                model.check_adapter()
        return method(self, *args, **kwargs)

    for name in _CHANGES:
        wrap_method(LoraBaseMixin, name, change)


def check_flux() -> None:
    """Has Flux's loader find the shapes of weights that are held as codes, and raise
    ConversionError where a control LoRA would widen a quantized layer.
    """
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    def load(method: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        model = self.transformer
        if not is_quantized(model):
            return method(self, *args, **kwargs)
        layers = dict(quantized_layers(model))
        with contextlib.ExitStack() as stack:
            # diffusers takes an adapter out of which another failed to take the place.
            for component in () if kwargs.get("hotswap") else _components(self):
                if isinstance(component, nn.Module):
                    stack.enter_context(unchanged_on_error(component))
            stack.enter_context(config_unchanged_on_error(model))
            with _codes_as_weights(model, layers):
                result = method(self, *args, **kwargs)
            _check_present(model, layers)
        return result

    wrap_method(FluxLoraLoaderMixin, "load_lora_weights", load)


def _check_unfused(model: nn.Module) -> None:
    """Raises ConversionError if an adapter is fused: peft would raise, too, and diffusers then
    take the adapter out of the model but not out of the weights.
    """
    for path, module in model.named_modules():
        if getattr(module, "merged_adapters", None):
            raise ConversionError(
                "an adapter that is fused cannot be swapped",
                where=path,
                fix="pipe.unfuse_lora() before hotswap=True",
            )


def _components(pipe: Any) -> list[Any]:
    return [getattr(pipe, name, None) for name in pipe._lora_loadable_modules]


@contextlib.contextmanager
def _codes_as_weights(model: Any, layers: dict[str, QuantLayer]) -> Any:
    """Has the state dict of a model name codes as weights, too, for those who read their shape."""

    def state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = type(model).state_dict(model, *args, **kwargs)
        codes = {f"{p}.weight": m.codes for p, m in layers.items() if "codes" in m._parameters}
        return {**found, **codes}

    vars(model)["state_dict"] = state_dict
    try:
        yield
    finally:
        vars(model).pop("state_dict", None)


def _check_present(model: nn.Module, layers: dict[str, QuantLayer]) -> None:
    present = {id(module) for module in model.modules()}
    gone = [path for path, layer in layers.items() if id(layer) not in present]
    if gone:
        raise ConversionError(
            "a control LoRA for a layer that is quantized",
            where=gone[0],
            why="it widens the layer, of which codes and scales are those of the narrow one",
            fix=f"Recipe(exclude=[{gone[0]!r}]), or Recipe(edges=32) for first and last layers",
        )
