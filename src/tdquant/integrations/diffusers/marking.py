"""Marks that diffusers looks for on a quantized model, on those that tdquant made itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from tdquant.clock import clock_of
from tdquant.freezing import is_frozen
from tdquant.integrations.diffusers.config import METHOD, TDQConfig
from tdquant.integrations.diffusers.quantizer import TDQQuantizer
from tdquant.recipe import Recipe
from tdquant.state import recipe_of
from tdquant.storage.description import describe


def mark(model: nn.Module) -> None:
    """Lets ``save_pretrained`` of a model that was quantized in place work as for a loaded one.

    Models that are not diffusers' own are left alone.
    """
    from diffusers import ModelMixin

    if not isinstance(model, ModelMixin):
        return
    marked: Any = model
    recipe = recipe_of(model) or Recipe()
    frozen = is_frozen(model)
    config = TDQConfig(
        recipe,
        timestep=clock_of(model).argument,
        description=describe(model) if frozen else None,
    )
    marked.hf_quantizer = TDQQuantizer(config, pre_quantized=frozen)
    marked.is_quantized = True
    marked.quantization_method = METHOD
    marked.register_to_config(quantization_config=config)
