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


_REMOVE = "accelerate.hooks.remove_hook_from_submodules(model)"
GROUPS = "group_offloading"
"""Name of diffusers' hook that loads a group of modules while they run."""


def offload_group(module: nn.Module) -> Any:
    """The group in which diffusers offloads a module, or with the module what is below it; None if
    there is none.
    """
    hook = getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get(GROUPS)
    return None if hook is None else hook.group


@contextlib.contextmanager
def group_onloaded(module: nn.Module) -> Iterator[None]:
    """Loads what is offloaded in the group of a module while the context lasts."""
    group = offload_group(module)
    if group is None:
        yield
        return
    group.onload_()
    if group.stream is not None:
        group.stream.synchronize()
    try:
        yield
    finally:
        group.offload_()


@contextlib.contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Loads the offloaded parameters below a module while the context lasts. accelerate and
    diffusers load them only for the calls of the modules that own them.
    """
    hooks: list[tuple[Any, nn.Module]] = [
        (hook, m) for m in module.modules() if (hook := getattr(m, "_hf_hook", None)) is not None
    ]
    try:
        for hook, owner in hooks:
            hook.pre_forward(owner)
        with contextlib.ExitStack() as stack:
            for part in module.modules():
                stack.enter_context(group_onloaded(part))
            yield
    finally:
        for hook, owner in hooks:
            hook.post_forward(owner, None)


def check_onloaded(model: nn.Module, verb: str, in_memory: bool = True) -> None:
    """Checks that no weights of a model are offloaded by accelerate or, in groups, by diffusers:
    these load them only during calls.

    Arguments:
        model: The model.
        verb: What is to be done with it, for the error.
        in_memory: Whether groups that are offloaded to memory count, whose numbers can be read.

    Raises:
        ConversionError: A layer is offloaded; the first is named.
    """
    check_not_grouped(model, verb, in_memory)
    for path, module in model.named_modules():
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            where = path or type(model).__name__
            raise _offloaded(where, verb, "before offloading, or after " + _REMOVE)


def check_not_grouped(model: nn.Module, verb: str, in_memory: bool = True) -> None:
    """Checks that no part of a model is offloaded in groups by diffusers: the backward pass of a
    call would find other numbers in the weights, and layers that are replaced are not loaded.

    Arguments:
        model: The model.
        verb: What is to be done with it, for the error.
        in_memory: Whether groups that are offloaded to memory count, whose numbers can be read.

    Raises:
        ConversionError: A part is; the first is named.
    """
    for path, module in model.named_modules():
        group = offload_group(module)
        if group is not None and (in_memory or group.offload_to_disk_path):
            raise _offloaded(path or type(model).__name__, verb, "before enable_group_offload")


def _offloaded(where: str, verb: str, fix: str) -> ConversionError:
    return ConversionError(
        f"the weights are offloaded, and {verb} reads them outside calls",
        where=where,
        fix=f"{verb} {fix}",
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
