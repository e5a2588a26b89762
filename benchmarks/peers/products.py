"""How much of a model is quantized, and what its products run on."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
INTEGER = ("_int_mm", "openvino_int_mm", "int_scaled_matmul", "_weight_int4pack_mm",
           "_weight_int8pack_mm", "dyn_quant_matmul", "qlinear", "qconv")  # fmt: skip
FLOAT = ("mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product")


def linear_macs(model: nn.Module, call: tuple[Tensor, Tensor]) -> dict[str, int]:
    """Multiplications of each linear layer and convolution in a call, by path."""
    found: Counter[str] = Counter()

    def count(path: str) -> Any:
        def hook(layer: Any, args: Any, output: Tensor) -> None:
            found[path] += output.numel() * math.prod(layer.weight.shape[1:])

        return hook

    hooks = [
        layer.register_forward_hook(count(path))
        for path, layer in model.named_modules()
        if isinstance(layer, LAYERS)
    ]
    try:
        with torch.no_grad():
            model(*call)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class Products(TorchDispatchMode):
    """Counts matrix products and convolutions, and those of them on integers."""

    def __init__(self) -> None:
        super().__init__()
        self.integer = self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.lstrip("_")
        integer = any(name.startswith(known.lstrip("_")) for known in INTEGER)
        self.integer += integer
        self.all += integer or any(
            name == known or name.startswith(f"{known}_") for known in FLOAT
        )
        return func(*args, **(kwargs or {}))


def torch_products(model: nn.Module, call: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """How many products of a call run on integers, and how many there are."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), Products() as found:
        model(*call)
    return found.integer, found.all
