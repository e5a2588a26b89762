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
    hook = _hooks_of(module).get(GROUPS)
    return None if hook is None else hook.group


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    """Hooks of diffusers on a module, by name."""
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {})


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


def check_unhooked(model: nn.Module, verb: str) -> None:
    """Checks that diffusers has put no hooks on the modules of a model, which offload them in
    groups, or leave out parts of calls: in a copy they run the original, in a backward pass they
    have moved the weights, and calibration would not see what they leave out.

    Raises:
        ConversionError: There is a hook; the first is named.
    """
    _check_groups(model, verb, on_disk=False)
    for path, module in model.named_modules():
        for name in _hooks_of(module):
            raise ConversionError(
                f"{verb} takes no model with a hook of diffusers",
                where=f"{path or type(model).__name__}: {name}",
                why="it may leave out parts of calls, and in a copy it would run the original",
                fix="model.disable_cache(), if it is a cache, and enable_cache on the result",
            )


def check_onloaded(model: nn.Module, verb: str) -> None:
    """As ``check_unhooked``, and that no weights are offloaded by accelerate, which loads them
    only during calls.
    """
    check_unhooked(model, verb)
    _check_accelerate(model, verb)


def check_readable(model: nn.Module, verb: str) -> None:
    """Checks that the weights of a model are where they can be read outside calls: not offloaded
    by accelerate, nor to the disk by diffusers.

    Raises:
        ConversionError: They are not; the first part is named.
    """
    check_not_on_disk(model, verb)
    _check_accelerate(model, verb)


def check_not_on_disk(model: nn.Module, verb: str) -> None:
    """Checks that diffusers has offloaded no group of a model to the disk.

    Raises:
        ConversionError: It has; the first part is named.
    """
    _check_groups(model, verb, on_disk=True)


def _check_groups(model: nn.Module, verb: str, on_disk: bool) -> None:
    for path, module in model.named_modules():
        group = offload_group(module)
        if group is not None and (group.offload_to_disk_path or not on_disk):
            raise _offloaded(path or type(model).__name__, verb, "before enable_group_offload")


def _check_accelerate(model: nn.Module, verb: str) -> None:
    for path, module in model.named_modules():
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            where = path or type(model).__name__
            raise _offloaded(where, verb, "before offloading, or after " + _REMOVE)


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
