"""Registering tdquant among diffusers' quantization backends, and marking the models that tdquant
makes as diffusers marks those that it loads.
"""

from __future__ import annotations

from typing import Any

from diffusers.quantizers import auto
from torch import nn

from tdquant.clock import clock_of
from tdquant.freezing import is_frozen
from tdquant.integrations.diffusers.adapters import check_fusing
from tdquant.integrations.diffusers.config import METHOD, TDQConfig, put_config
from tdquant.integrations.diffusers.quantizer import TDQQuantizer
from tdquant.recipe import Recipe
from tdquant.state import recipe_of
from tdquant.storage.description import describe
from tdquant.support.announce import LISTENERS


def register() -> None:
    """Registers tdquant in diffusers, and ``mark`` for every model that tdquant makes.

    ``import tdquant`` does it; calling it again changes nothing.
    """
    auto.AUTO_QUANTIZER_MAPPING[METHOD.value] = TDQQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD.value] = TDQConfig
    if mark not in LISTENERS:
        LISTENERS.append(mark)


def mark(model: nn.Module) -> None:
    """Lets ``save_pretrained`` of a model that was quantized in place work as for a loaded one.

    Models that are not diffusers' own are left alone.
    """
    from diffusers import ModelMixin

    if not isinstance(model, ModelMixin):
        return
    check_fusing(model)
    marked: Any = model
    frozen = is_frozen(model)
    config = TDQConfig(
        recipe_of(model) or Recipe(),
        timestep=clock_of(model).argument,
        description=describe(model) if frozen else None,
    )
    marked.hf_quantizer = TDQQuantizer(config, pre_quantized=frozen)
    marked.is_quantized = True
    marked.quantization_method = METHOD
    put_config(marked, config)
