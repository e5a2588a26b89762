"""A weight held as its integers, which forms its numbers at every use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdquant.numerics.grid import Grid
from tdquant.quantizers.groups import Groups
from tdquant.quantizers.weight import FrozenWeight


class CodedWeight(FrozenWeight):
    """A frozen weight held as its integers, a quarter of the memory: the numbers are formed at
    every use, in the type that the model was cast to last.

    Arguments:
        grid: Symmetric codes.
        step: ``(C,)`` or ``()``.
        dtype: Of the numbers.
        groups: Multipliers of groups of inputs; the integers have them in.
    """

    def __init__(
        self, grid: Grid, step: Tensor, dtype: torch.dtype, groups: Groups | None = None
    ) -> None:
        super().__init__(grid, step, groups)
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """The numbers that codes stand for; numbers pass, as they do through a FrozenWeight."""
        if weight.is_floating_point():
            return weight
        return weight.float().mul_(self.scale(weight)).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def multiply(self, codes: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """``product(numbers)``, for whose gradient autograd keeps the codes: numbers that it kept
        would be the whole float model in the end.

        Arguments:
            codes: The weight.
            product: Computes what the layer does with the numbers.
        """
        numbers = self(codes)
        place = numbers.untyped_storage().data_ptr()

        def pack(saved: Tensor) -> Any:
            if saved.untyped_storage().data_ptr() != place:
                return saved
            return saved.shape, saved.stride(), saved.storage_offset()

        def unpack(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else self(codes).as_strided(*kept)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return product(numbers)
