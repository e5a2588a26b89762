"""Temporary hooks of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tdquant.errors import ConversionError


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks when the context ends, by an error too."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Loads the offloaded parameters below a module while the context lasts. accelerate loads them
    only for the calls of the modules that own them.
    """
    hooks: list[tuple[Any, nn.Module]] = [
        (hook, m) for m in module.modules() if (hook := getattr(m, "_hf_hook", None)) is not None
    ]
    try:
        for hook, owner in hooks:
            hook.pre_forward(owner)
        yield
    finally:
        for hook, owner in hooks:
            hook.post_forward(owner, None)


def check_onloaded(model: nn.Module, verb: str) -> None:
    """Checks that no weights of a model are offloaded by accelerate, which loads them only during
    calls.

    Raises:
        ConversionError: A layer is offloaded; the first is named.
    """
    for path, module in model.named_modules():
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            raise ConversionError(
                f"the weights are offloaded, and {verb} reads them outside calls",
                where=path or type(model).__name__,
                fix="before offloading, or accelerate.hooks.remove_hook_from_submodules(model)",
            )


_LIBRARIES = ("tdquant.", "torch.", "diffusers.", "accelerate.", "peft.")
"""Packages whose hooks are part of what a module computes, as a clock or a weight's norm."""


@contextlib.contextmanager
def without_user_hooks(model: nn.Module) -> Iterator[None]:
    """Disables the user's forward hooks on the modules of a model, for calls that the user did not
    make, and restores them in their order.
    """
    tables = [t for m in model.modules() for t in (m._forward_pre_hooks, m._forward_hooks) if t]
    before = [dict(table) for table in tables]
    try:
        for table in tables:
            for key, hook in list(table.items()):
                if not (getattr(hook, "__module__", None) or "").startswith(_LIBRARIES):
                    del table[key]
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)
