"""IP-Adapters on quantized models.

diffusers replaces all attention processors of a model when it loads or unloads an IP-Adapter.
Those of ``Recipe(attention=...)`` hold quantizers, and are put back. A processor of the adapter
computes the products of its block in float, and keeps the quantized processor that was there as a
submodule, so that it is frozen and copied with the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tdquant.clock import clock_of, is_quantized
from tdquant.integrations.diffusers.config import config_unchanged_on_error
from tdquant.integrations.importing import wrap_method
from tdquant.layers.attention import QuantAttention
from tdquant.lowering.slot import OnEngine
from tdquant.support.restoring import unchanged_on_error

_KEPT = "tdq_kept"
"""Name of the quantized processor in a processor of an IP-Adapter."""


def keep_quantizers() -> None:
    """Makes loading and unloading an IP-Adapter keep the quantizers of attention, and a load that
    fails leave a quantized model as it was.
    """
    from diffusers.loaders.ip_adapter import IPAdapterMixin
    from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin
    from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    def load(change: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with _processors_kept(self):
            return change(self, *args, **kwargs)

    def unload(change: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.unet, OnEngine):
            self.unet.check_adapter()
        with _processors_kept(self.unet):
            return change(self, *args, **kwargs)

    wrap_method(IPAdapterMixin, "unload_ip_adapter", unload)
    for cls in (
        UNet2DConditionLoadersMixin,
        FluxTransformer2DLoadersMixin,
        SD3Transformer2DLoadersMixin,
    ):
        wrap_method(cls, "_load_ip_adapter_weights", load)


@contextlib.contextmanager
def _processors_kept(model: Any) -> Iterator[None]:
    """Puts default processors in the place of quantized ones while the context lasts. Afterwards
    these are back, alone or in those of an adapter; after an error all is as it was.
    """
    if not is_quantized(model):
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor2_0

    held = {name: kept for name, p in model.attn_processors.items() if (kept := kept_in(p))}
    with unchanged_on_error(model), config_unchanged_on_error(model):
        for name, kept in held.items():
            block = model.get_submodule(name.removesuffix(".processor"))
            if block.processor is kept:
                del block._modules["processor"]
                block.processor = AttnProcessor2_0()
            else:
                del block.processor._modules[_KEPT]
        yield
    now = model.attn_processors
    for name in held.keys() & now.keys():
        if "IPAdapter" in type(now[name]).__name__:
            now[name].add_module(_KEPT, held[name])
        else:
            now[name] = held[name]
    model.set_attn_processor(now)
    clock_of(model).invalidate_scale_cache()


def kept_in(processor: Any) -> QuantAttention | None:
    """The quantized processor that a processor is, or keeps."""
    if isinstance(processor, QuantAttention):
        return processor
    return getattr(processor, _KEPT, None)
