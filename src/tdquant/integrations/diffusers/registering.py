"""Entering tdquant among diffusers' quantization backends."""

from __future__ import annotations

from diffusers.quantizers import auto

from tdquant.integrations.diffusers.config import METHOD, TDQConfig
from tdquant.integrations.diffusers.marking import mark
from tdquant.integrations.diffusers.quantizer import TDQQuantizer
from tdquant.support.announce import LISTENERS


def register() -> None:
    """Has diffusers know tdquant, and marks the models that tdquant makes for diffusers.

    ``import tdquant`` sees to it; calling it again changes nothing.
    """
    auto.AUTO_QUANTIZER_MAPPING[METHOD.value] = TDQQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD.value] = TDQConfig
    if mark not in LISTENERS:
        LISTENERS.append(mark)
