"""Finds the layers whose input is a concatenation, and keeps histograms of its parts.

Names play no part: while a call runs, every result of ``torch.cat`` is remembered, and a layer
whose input is that very tensor, concatenated along the channels that it sums over, can be split.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tdquant.calibration.time_histograms import TimeHistograms
from tdquant.layers import QuantLayer
from tdquant.layers.base import INPUT
from tdquant.layers.split import channel_dimension
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.quantizers import ActivationQuantizer, NoiseWeight, WeightQuantizer
from tdquant.scales import PendingScale

_CATS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True)
class Concatenation:
    """The parts of a layer's input.

    Attributes:
        dimension: The dimension of the channels, counted from the end.
        sizes: Channels of each part.
    """

    dimension: int
    sizes: tuple[int, ...]

    def names(self, quantizer: str) -> list[str]:
        """Paths that the parts' quantizers have once the layer of ``quantizer`` is split."""
        layer = quantizer.removesuffix(INPUT)
        return [f"{layer}.parts.{i}{INPUT}" for i in range(len(self.sizes))]

    def spans(self) -> list[tuple[int, int]]:
        """First channel and number of channels of each part."""
        return [(sum(self.sizes[:i]), size) for i, size in enumerate(self.sizes)]

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts of an input."""
        return x.split(self.sizes, self.dimension)


class ConcatenationMode(TorchFunctionMode):
    """While it is active, remembers the results of ``torch.cat`` as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[weakref.ref[Tensor], int, tuple[int, ...]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _CATS and kwargs.get("out") is None:
            tensors = args[0] if args else kwargs["tensors"]
            dimension = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            dimension = dimension % result.ndim - result.ndim
            sizes = tuple(t.shape[dimension] for t in tensors if t.ndim == result.ndim)
            self._made[id(result)] = weakref.ref(result), dimension, sizes
        return result

    def parts(self, x: Tensor, dimension: int) -> tuple[int, ...] | None:
        """Sizes of the parts if x is a concatenation along ``dimension``, counted from the end."""
        reference, along, sizes = self._made.get(id(x), (None, 0, ()))
        if reference is None or reference() is not x or along != dimension:
            return None
        return sizes if len(sizes) > 1 and min(sizes) > 0 else None

    def forget(self) -> None:
        """Drops what is remembered; to be called between calls of the model."""
        self._made.clear()


class PartObserver:
    """Histograms of the parts of every quantizer's input that is the same concatenation in every
    call, found while ``mode`` is active.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizers: Mapping[str, ActivationQuantizer],
        mode: ConcatenationMode,
    ) -> None:
        self._mode = mode
        self._dimensions = {n: input_dimension(model, n, q) for n, q in quantizers.items()}
        self._sizes: dict[str, tuple[int, ...] | None] = {}
        self._seen: dict[str, list[TimeHistograms]] = {}

    def update(self, name: str, x: Tensor, timestep: Tensor, batch: BatchAxis | None) -> None:
        """Takes in the input x of the quantizer ``name``."""
        dimension = self._dimensions[name]
        if dimension is None:
            return
        sizes = self._mode.parts(x, dimension)
        if self._sizes.setdefault(name, sizes) != sizes:
            self._sizes[name] = sizes = None
        if sizes is None:
            self._seen.pop(name, None)
            return
        histograms = self._seen.setdefault(name, [TimeHistograms() for _ in sizes])
        for histogram, piece in zip(histograms, x.split(sizes, dimension), strict=True):
            histogram.update(piece, timestep, batch)

    def found(self) -> tuple[dict[str, Concatenation], dict[str, TimeHistograms]]:
        """Concatenations by the quantizer that they reach, and the histograms of their parts by
        path, without those that have a part that is always zero.
        """
        parts: dict[str, Concatenation] = {}
        seen: dict[str, TimeHistograms] = {}
        for name, histograms in self._seen.items():
            sizes, dimension = self._sizes[name], self._dimensions[name]
            if sizes and dimension and not any(part.all_zero for part in histograms):
                parts[name] = Concatenation(dimension, sizes)
                seen |= dict(zip(parts[name].names(name), histograms, strict=True))
        return parts, seen


def with_parts(
    quantizers: Mapping[str, ActivationQuantizer], parts: Mapping[str, Concatenation]
) -> dict[str, ActivationQuantizer]:
    """Quantizers by path, and again under the path of each part of their input."""
    return dict(quantizers) | {p: quantizers[n] for n, c in parts.items() for p in c.names(n)}


def splittable(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    parts: Mapping[str, Concatenation],
) -> dict[str, Concatenation]:
    """Those of ``parts`` that can become split layers of this model: neither calibrated nor
    reconstructed yet, of the sizes of its layers, and with no slice of the weight all zero.
    """
    chosen = {}
    for name, concatenation in parts.items():
        quantizer = quantizers.get(name)
        if quantizer is None or not isinstance(quantizer.scale, PendingScale):
            continue
        if input_dimension(model, name, quantizer) != concatenation.dimension:
            continue
        layer: Any = model.get_submodule(name.removesuffix(INPUT))
        weight, sizes = layer.weight.detach(), concatenation.sizes
        fresh = type(layer.weight_quantizer) in (nn.Identity, WeightQuantizer, NoiseWeight)
        if not fresh or weight.shape[1] != sum(sizes):
            continue
        if all(bool(piece.any()) for piece in weight.split(sizes, 1)):
            chosen[name] = concatenation
    return chosen


def input_dimension(model: nn.Module, name: str, quantizer: ActivationQuantizer) -> int | None:
    """The dimension of the channels of what a quantizer takes, counted from the end, if it is a
    layer's input.
    """
    if not name.endswith(INPUT) or type(quantizer) is not ActivationQuantizer:
        return None
    layer = model.get_submodule(name.removesuffix(INPUT))
    return channel_dimension(layer) if isinstance(layer, QuantLayer) else None
