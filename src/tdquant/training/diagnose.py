"""Finding the layer or parameter where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.support.hooks import hooked
from tdquant.training.sharding import whole


@torch.no_grad()
def first_not_finite(model: nn.Module, call: Callable[[], Any]) -> str:
    """Runs ``call`` again and names the first layer that turns finite inputs into NaN or infinity.

    Arguments:
        model: The model that ``call`` runs.
        call: The failed computation.

    Returns:
        A clause for an error message.
    """
    broken = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        return f"parameters are not finite: {_first(broken)}"
    found: list[str] = []

    def look(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not found and not _finite(output) and all(_finite(a) for a in args):
                found.append(path)

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children()) or _owns(m)]
    hooks = [m.register_forward_hook(look(n)) for n, m in leaves if n]
    with hooked(hooks):
        call()
    return f"{found[0]} gave them first" if found else "every layer's output is finite"


def gradients_not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient has NaN or infinity. Where they are sharded, every
    process has to ask.
    """
    return [n for n, g in _gradients(model) if not bool(whole(g).isfinite().all())]


def first_gradients_not_finite(model: nn.Module) -> str:
    """Names the first parameters whose gradient has NaN or infinity, after the norm of all
    gradients had. Where they are sharded, every process has to ask.

    Returns:
        A clause for an error message.
    """
    broken = gradients_not_finite(model)
    if broken:
        return f"gradients are not finite: {_first(broken)}"
    largest = {n: float(whole(g).abs().max()) for n, g in _gradients(model) if g.numel()}
    name = max(largest, key=largest.__getitem__)
    return f"every gradient is finite, but their norm is not: {name} has {largest[name]:.3g}"


def _gradients(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _owns(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
