"""Finding the layer where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.hooks import hooked


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
        return f"parameters are not finite: {', '.join(broken[:3])}" + (
            ", ..." if len(broken) > 3 else ""
        )
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


def _owns(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
