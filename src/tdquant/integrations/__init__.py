"""tdquant inside other libraries. Importing this imports none of them: each integration waits for
its library to be imported by somebody else, before or after.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module

from tdquant.integrations.importing import when_imported

_HERE = {
    "diffusers.quantizers.auto": ("tdquant.integrations.diffusers.registering", "register"),
    "diffusers.models.modeling_utils": ("tdquant.integrations.diffusers.card", "give_cards"),
    "diffusers.pipelines.pipeline_utils": (
        "tdquant.integrations.diffusers.saving",
        "check_pipelines",
    ),
    "peft.tuners.lora.model": ("tdquant.integrations.peft", "register"),
}
"""Module of a library -> what to call here once it has been imported."""


def register() -> None:
    """Makes every integration ready for the moment at which its library is imported."""
    for library, (module, function) in _HERE.items():
        when_imported(library, partial(_call, module, function))


def _call(module: str, function: str) -> None:
    try:
        getattr(import_module(module), function)()
    except ImportError as error:  # the library itself must go on working
        warnings.warn(f"tdquant cannot extend it: {error}", stacklevel=2)
