"""tdquant inside other libraries. Importing this imports none of them: each integration is set up
when its library is imported, be it before or after.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module

from tdquant.integrations.importing import when_imported

_DIFFUSERS = "tdquant.integrations.diffusers"
_EXTENSIONS = (
    ("diffusers.quantizers.auto", f"{_DIFFUSERS}.registering", "register"),
    ("diffusers.pipelines.pipeline_utils", f"{_DIFFUSERS}.saving", "check_pipelines"),
    ("diffusers.models.modeling_utils", f"{_DIFFUSERS}.card", "give_cards"),
    ("diffusers.models.modeling_utils", f"{_DIFFUSERS}.adapters", "extend_models"),
    ("diffusers.loaders.lora_base", f"{_DIFFUSERS}.loras", "check_engines"),
    ("diffusers.loaders.lora_pipeline", f"{_DIFFUSERS}.loras", "check_flux"),
    ("diffusers.loaders.peft", f"{_DIFFUSERS}.loras", "check_loading"),
    ("diffusers.models.modeling_utils", f"{_DIFFUSERS}.offloading", "check_moving"),
    ("diffusers.hooks.hooks", f"{_DIFFUSERS}.offloading", "follow_groups"),
    ("diffusers.models.attention_processor", f"{_DIFFUSERS}.processors", "keep_processors"),
    ("diffusers.pipelines.pipeline_utils", f"{_DIFFUSERS}.processors", "check_slicing"),
    ("diffusers.loaders.ip_adapter", f"{_DIFFUSERS}.ip_adapters", "keep_quantizers"),
    ("diffusers.loaders.peft", "tdquant.integrations.peft", "register_fusing"),
    ("peft", "tdquant.integrations.peft", "register"),
)
"""Module of a library, and module and function that extend it."""


def register() -> None:
    """Sets up every integration whose library is imported, and the others when theirs is."""
    for library, module, function in _EXTENSIONS:
        when_imported(library, partial(_call, module, function))


def _call(module: str, function: str) -> None:
    try:
        getattr(import_module(module), function)()
    except (ImportError, AttributeError) as error:  # the library itself must go on working
        warnings.warn(f"tdquant cannot extend it: {error}", stacklevel=2)
