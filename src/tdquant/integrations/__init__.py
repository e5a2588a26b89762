"""tdquant inside other libraries. Importing this imports none of them: each integration is set up
when its library is imported, be it before or after.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module

from tdquant.integrations.importing import when_imported

_EXTENSIONS = {
    "diffusers.quantizers.auto": ("tdquant.integrations.diffusers.registering", "register"),
    "diffusers.models.modeling_utils": ("tdquant.integrations.diffusers.card", "give_cards"),
    "diffusers.pipelines.pipeline_utils": (
        "tdquant.integrations.diffusers.saving",
        "check_pipelines",
    ),
    "peft.tuners.lora.model": ("tdquant.integrations.peft", "register"),
}
"""Module of a library -> module and function that extend it."""


def register() -> None:
    """Sets up every integration whose library is imported, and the others when theirs is."""
    for library, (module, function) in _EXTENSIONS.items():
        when_imported(library, partial(_call, module, function))


def _call(module: str, function: str) -> None:
    try:
        getattr(import_module(module), function)()
    except ImportError as error:  # the library itself must go on working
        warnings.warn(f"tdquant cannot extend it: {error}", stacklevel=2)
