"""Adapters of peft on quantized layers: a float branch when loaded, new codes when fused.

peft asks the layer below an adapter for its class, window and weight, and fuses into ``weight`` in
place. Where that layer is a structure, or frozen, a float layer stands in for it meanwhile.
"""

from __future__ import annotations

from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.ia3.layer import _ConvNd as IA3Conv
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import _ConvNd as LoraConv
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.mixed.model import MixedModel
from peft.tuners.tuners_utils import BaseTuner

from tdquant.integrations.importing import wrap_method
from tdquant.integrations.peft.fusing import merge, unmerge, warn_of_rounding
from tdquant.integrations.peft.injecting import inject
from tdquant.integrations.peft.unloading import unload

_MERGING = (LoraLinear, LoraConv, LycorisLayer, IA3Linear, IA3Conv)


def register() -> None:
    """Makes peft take rewritten layers, fuse into codes, and raise before it changes a model whose
    quantized layers cannot take an adapter.
    """
    wrap_method(BaseTuner, "inject_adapter", inject)
    for cls in _MERGING:
        wrap_method(cls, "merge", merge)
        wrap_method(cls, "unmerge", unmerge)
    wrap_method(BaseTuner, "merge_adapter", warn_of_rounding)
    wrap_method(BaseTuner, "_unload_and_optionally_merge", unload)
    wrap_method(MixedModel, "_unload_and_optionally_merge", unload)


def register_fusing() -> None:
    """Makes ``fuse_lora`` of diffusers warn where rounding keeps little of an adapter."""
    from diffusers.loaders.peft import PeftAdapterMixin

    wrap_method(PeftAdapterMixin, "fuse_lora", warn_of_rounding)
