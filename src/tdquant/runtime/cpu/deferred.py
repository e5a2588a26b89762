"""Group normalization put off until it is known what follows.

A denoiser runs group norm, SiLU and a convolution one after another, three functions that each
read and write the whole activation. Here the norm returns a tensor that is not computed yet: SiLU
takes note of itself, and a quantized layer computes both on the way to its codes. Whatever else
touches the tensor computes it first, so any model may do with it what it likes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.errors import BackendError
from tdquant.runtime.native.norm import GroupNorm
from tdquant.runtime.native.product import Codes

_LOOKED_AT = frozenset(
    getattr(Tensor, name).__get__ for name in ("layout", "requires_grad", "is_cuda")
) | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.__len__}


class Deferred(Tensor):
    """The output ``(B, C, *)`` of a norm on ``x``, not computed yet."""

    group_norm: GroupNorm  # `norm` is a method of tensors
    source: Tensor
    version: int
    value: Tensor | None

    @staticmethod
    def __new__(cls, source: Tensor, norm: GroupNorm) -> Deferred:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, source.shape, strides=source.stride(), dtype=source.dtype
        )
        made.source, made.group_norm, made.version = source, norm, source._version
        made.value = None
        return made

    def __init__(self, source: Tensor, norm: GroupNorm) -> None:
        pass

    # What is asked for most is answered without the way through torch.
    shape = property(lambda self: self.source.shape)  # type: ignore[assignment]
    ndim = property(lambda self: self.source.ndim)  # type: ignore[assignment]
    dtype = property(lambda self: self.source.dtype)  # type: ignore[assignment]
    device = property(lambda self: self.source.device)  # type: ignore[assignment]

    def unchanged(self) -> Tensor:
        """The norm's input.

        Raises:
            BackendError: It was changed in place after the norm.
        """
        if self.source._version != self.version:
            raise BackendError(
                "the input of a group norm was changed in place before its output was used",
                where="cpu",
                why="the cpu backend computes norms together with what follows them",
                fix='let the model change a copy, or compile with backend="reference"',
            )
        return self.source

    def computed(self) -> Tensor:
        """The values."""
        if self.value is None:
            self.value = self.group_norm(self.unchanged())
        return self.value

    def codes(self, codes: Codes, scale: Tensor, row: int) -> Tensor:
        """Their codes ``(M, row)``; of the values if somebody looked at them, who may have changed
        them in place.
        """
        if self.value is not None:
            return codes.of(self.value, scale, row)
        return self.group_norm.codes(self.unchanged(), codes, scale, row)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKED_AT:
            return super().__torch_function__(func, types, args, kwargs)
        if args and isinstance(args[0], Deferred):
            deferred = args[0]
            unused = deferred.value is None and not deferred.group_norm.silu
            if func is F.silu and unused and not any((*args[1:], *kwargs.values())):
                return Deferred(deferred.unchanged(), replace(deferred.group_norm, silu=True))
            if func is F.dropout and not _training(args[1:], kwargs):
                return deferred
        return func(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = {name: _plain(value) for name, value in (kwargs or {}).items()}
        return func(*_plain(args), **kwargs)


def _plain(value: Any) -> Any:
    """The value with every deferred tensor in it computed."""
    if isinstance(value, Deferred):
        return value.computed()
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value


def _training(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether arguments of ``F.dropout`` behind its input ask for dropping."""
    return bool(rest[1] if len(rest) > 1 else kwargs.get("training", True))


class DeferredNorm(nn.GroupNorm):
    """``nn.GroupNorm`` over the parameters of ``norm`` that puts itself off where it may."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """The norm of ``(B, C, *)``; deferred, where gradients are off, for float32 images with
        the channels last in memory.
        """
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        fits = input.ndim > 2 and input.shape[1] == self.num_channels
        dense = fits and input.movedim(1, -1).is_contiguous() and input.numel() > 0
        single = input.dtype == torch.float32 and (weight is None or weight.dtype == torch.float32)
        if dense and single and not torch.is_grad_enabled():
            norm = GroupNorm(self.num_groups, weight, bias, self.eps)
            if input.ndim == 4 and not input.is_inference():
                return Deferred(input, norm)
            return norm(input)
        weight, bias = (None if p is None else p.float() for p in (weight, bias))
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)
