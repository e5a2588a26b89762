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
    """Has the parameters below a module there although nobody calls it: accelerate offloads them
    and brings them in at the calls of the modules that own them.
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
    """Refuses a model whose weights accelerate has offloaded: they are there in calls alone.

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
    """Leaves off the forward hooks that the user put on a model's modules, for calls that nobody
    made. Afterwards they are there again, in their order.
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
