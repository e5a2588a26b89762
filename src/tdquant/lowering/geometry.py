"""Where the windows of a layer lie: strides, dilations, groups and borders."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.layers import CONVOLUTIONS, QuantLayer

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Geometry:
    """How windows of a convolution lie; without dimensions, a product over the last axis.

    Attributes:
        stride: One number for each spatial dimension, as of dilation.
        dilation: Distance of neighbouring taps.
        groups: Number of groups.
        padding: As ``F.pad`` takes it: of the last dimension first, before and after.
        mode: As ``F.pad`` takes it.
    """

    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding: tuple[int, ...] = ()
    mode: str = "constant"

    @classmethod
    def of(cls, layer: QuantLayer) -> Geometry:
        """Geometry of a layer."""
        if not isinstance(layer, CONVOLUTIONS):
            return cls()
        return cls(
            tuple(layer.stride),
            tuple(layer.dilation),
            layer.groups,
            tuple(int(n) for n in layer._reversed_padding_repeated_twice),
            "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )

    def lies_beyond(self, kernel: Sequence[int]) -> bool:
        """Whether a window of these sizes can lie in the border alone."""
        extents = [d * (k - 1) + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        pairs = zip(self.padding[::2], self.padding[1::2], strict=True)
        return any(
            max(pair) >= extent for pair, extent in zip(pairs, reversed(extents), strict=True)
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def channel(self) -> tuple[int, ...]:
        """Shape of one number for each channel that broadcasts over outputs."""
        return (-1, *[1] * self.dims)

    @property
    def zeros(self) -> tuple[int, ...]:
        """The zeros that are padded, as ``padding``; none in other modes."""
        return self.padding if self.mode == "constant" else (0,) * len(self.padding)

    @property
    def even(self) -> tuple[int, ...] | None:
        """Zeros on either side of each dimension, the first dimension first; None if the two sides
        differ.
        """
        before, after = self.zeros[0::2], self.zeros[1::2]
        return after[::-1] if before == after else None

    def lifted(self) -> Geometry:
        """The same in two dimensions, or in three."""
        ones = (1,) * (2 - self.dims)
        nothing = (0,) * (2 * len(ones))
        return replace(
            self,
            stride=ones + self.stride,
            dilation=ones + self.dilation,
            padding=self.padding + nothing,
        )

    def padded(self, x: Tensor, value: float = 0) -> Tensor:
        """``(B, C, *)`` with its border, in which ``value`` stands for zero."""
        if not any(self.padding):
            return x
        return F.pad(x, self.padding, self.mode, value if self.mode == "constant" else None)

    def wrapped(self, x: Tensor) -> Tensor:
        """``(B, C, *)`` with its border if that is not of zeros."""
        return x if self.mode == "constant" else self.padded(x)

    @property
    def inner(self) -> Geometry:
        """What is left to do for ``wrapped``."""
        return replace(self, padding=self.zeros, mode="constant")

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int | None = None
    ) -> Tensor:
        """The product by PyTorch: ``(*, C) -> (*, N)`` or ``(B, C, *) -> (B, N, *')``."""
        if not self.dims:
            return F.linear(x, weight, bias)
        sides = self.even
        if self.mode != "constant" or sides is None:
            x, sides = self.padded(x), (0,) * self.dims
        groups = self.groups if groups is None else groups
        convolve = _CONVOLVE[self.dims - 1]
        return convolve(x, weight, bias, self.stride, sides, self.dilation, groups)

    def windows(self, x: Tensor, taps: Sequence[int]) -> Tensor:
        """What each output sees of a padded input, ``(B, C, *) -> (B, *', taps C)``."""
        x = x.movedim(1, -1) if self.dims else x
        parts = []
        for slices in window_slices(taps, self.stride, self.dilation):
            part = x
            for axis, window in enumerate(slices):
                part = part[(slice(None),) * (axis + 1) + (slice(*window),)]
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def ones_product(self, x: Tensor, sums: Tensor) -> Tensor:
        """``sum_{inside} q_w`` for an input of the size of x, in its type: what a code of 1
        everywhere adds, less where windows hold zeros that were padded.

        Arguments:
            x: Input ``(B, C, *)``, not padded.
            sums: Weight codes ``(N, *k)``, summed over input channels.

        Returns:
            ``(N,)``, ``(N, 1, ..)``, or ``(1, N, *')`` where zeros are padded.
        """
        if not any(self.zeros):
            return sums.to(x.dtype).reshape(len(sums), -1).sum(1).reshape(self.channel)
        ones = torch.ones_like(x[:1, :1])
        return self.convolve(ones, sums.to(x.dtype).unsqueeze(1), groups=1)


def window_slices(
    taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[list[tuple[int, int | None, int]]]:
    """Start, stop and step along each axis of what one tap sees, tap by tap."""
    for place in itertools.product(*map(range, taps)):
        yield [
            (i * d, -(n - 1 - i) * d or None, s)
            for i, n, s, d in zip(place, taps, stride, dilation, strict=True)
        ]
