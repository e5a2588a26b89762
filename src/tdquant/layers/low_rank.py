r"""A layer with a branch of low rank beside it.

    y = (W - L) * x + b + U (V * x),    L = U V of rank r

L takes what is largest in the weight, in 8 bits, and leaves a rest whose range is smaller, so that
steps of few bits are finer. V has r outputs and the window of the layer, U is a linear layer, or a
convolution of one position. With m_j the importance of input j, L minimizes

    |(W - L) diag(m)|^2

and U V is the best product of rank r of singular vectors, with the square root of the singular
values on both sides. W - L is taken from the factors as they are rounded, so their rounding costs
nothing but that of U's input.

References:
    Li et al., SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models, 2024
    (https://arxiv.org/abs/2411.05007), section 4.
    Zhang et al., LQER: Low-Rank Quantization Error Reconstruction for LLMs, 2024
    (https://arxiv.org/abs/2402.02446), section 3: scaled by the magnitude of inputs.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.base import QUANTIZED, QuantLayer
from tdquant.layers.structure import CHANNELS, WrappedLayer, channel_dimension
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, WeightQuantizer
from tdquant.quantizers.steps import mse_step
from tdquant.scales import DynamicScale, PendingScale

FACTOR_BITS = 8
"""Bits of both factors, and of the input of the second."""


class LowRankLayer(WrappedLayer):
    """A plain layer and two for its branch, ``(*, in) -> (*, out)`` or ``(B, in, *) -> (B, out,
    *)``.

    Arguments:
        layer: The inner layer, of weight W - L.
        down: V.
        up: U, without bias.
    """

    structure = "low_rank"
    down: Any
    up: Any
    least_bits: ClassVar = {"down": (FACTOR_BITS, 0), "up": (FACTOR_BITS, FACTOR_BITS)}

    def __init__(self, layer: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__(layer)
        self.down, self.up = down, up

    @classmethod
    @torch.no_grad()
    def from_float(cls, layer: nn.Module, **spec: Any) -> LowRankLayer:
        """A float layer whose branch is still zero, to be filled from a state dict or by
        ``decomposed``.

        Arguments:
            layer: A linear layer or a convolution of one group, which becomes the inner one.
            spec: ``rank``, r.

        Raises:
            ConversionError: The layer is none of these, or the rank is not below that of the
                weight.
        """
        down, up = _branch(layer, int(spec["rank"]))
        return cls(layer, down, up).train(layer.training)

    @classmethod
    @torch.no_grad()
    def decomposed(
        cls, layer: nn.Module, rank: int = 16, importance: Tensor | None = None
    ) -> LowRankLayer:
        """The float layer with its branch taken out of its weight, in place.

        Arguments:
            layer: A float layer.
            rank: r.
            importance: m, ``(in,)``, not negative; None for 1.

        Raises:
            ConversionError: As ``from_float``, or the importance is negative or not finite.
        """
        new = cls.from_float(layer, rank=rank)
        new._factorize(layer, importance)
        layer.weight.copy_(new._rest(layer.weight))  # type: ignore[operator, arg-type]
        return new

    @classmethod
    @torch.no_grad()
    def from_quantized(
        cls, layer: QuantLayer, rank: int = 16, importance: Tensor | None = None
    ) -> LowRankLayer:
        """The quantized layer with a branch. The inner input quantizer is the very one of
        ``layer``; V's is its twin, and U's is pending unless that one is dynamic.

        Arguments:
            layer: A live quantized layer, which stays as it is.
            rank: r.
            importance: m, ``(in,)``, not negative; None for 1.

        Raises:
            ConversionError: As ``decomposed``, the weight is frozen, or nothing but the branch is
                left of it.
        """
        new = cls.blank(layer, rank=rank)
        new._factorize(layer, importance)
        for factor in (new.down, new.up):
            factor.weight_quantizer.step.copy_(_step(factor.weight))
        new.layer = layer.with_weight(new._rest(layer.weight), "LowRankLayer")
        return new

    @classmethod
    def blank(cls, layer: QuantLayer, **spec: Any) -> LowRankLayer:
        """The quantized layer with a branch of zeros, to be filled from a state dict."""
        branch = _branch(layer, int(spec["rank"]))
        down, up = (QUANTIZED[type(factor)].from_float(factor) for factor in branch)
        for factor in (down, up):
            factor.weight_quantizer = WeightQuantizer(
                Grid.signed(FACTOR_BITS, narrow=True),
                torch.ones(len(factor.weight), device=factor.weight.device, dtype=torch.float32),
            )
        if isinstance(source := layer.input_quantizer, ActivationQuantizer):
            down.input_quantizer = source.twin(source.grid, copy.deepcopy(source.scale))
            dynamic = isinstance(source.scale, DynamicScale)
            scale = DynamicScale() if dynamic else PendingScale(source.wanted, "up")
            up.input_quantizer = source.twin(Grid.signed(FACTOR_BITS), scale)
        return cls(layer, down, up).train(layer.training)

    def _factorize(self, layer: Any, importance: Tensor | None) -> None:
        u, v = _factors(layer.weight.detach(), len(self.down.weight), importance)
        self.down.weight.copy_(v.reshape(self.down.weight.shape))
        self.up.weight.copy_(u.reshape(self.up.weight.shape))

    def _rest(self, weight: Tensor) -> Tensor:
        """``W - L`` in the dtype of W."""
        return (weight.detach().double() - self._product(weight)).to(weight.dtype)

    def _product(self, weight: Tensor) -> Tensor:
        """L in float64 and the shape of a weight, of the factors as they are rounded."""
        v, u = (
            factor.weight_quantizer(factor.weight)
            if isinstance(factor, QuantLayer)
            else factor.weight
            for factor in (self.down, self.up)
        )
        return (u.flatten(1).double() @ v.flatten(1).double()).reshape(weight.shape)

    def whole_weight(self) -> Tensor:
        rest: Tensor = self.layer.weight
        return (rest.double() + self._product(rest)).to(rest.dtype)

    def shares(self, change: Tensor) -> list[tuple[nn.Module, Tensor]]:
        # The factors were chosen for the weight, and stay.
        return [(self.layer, change)]

    def specification(self) -> dict[str, Any]:
        return {"rank": int(self.down.weight.shape[0])}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def _step(weight: Tensor) -> Tensor:
    return mse_step(weight, Grid.signed(FACTOR_BITS, narrow=True), True, "LowRankLayer")


def _branch(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """V and U of zeros, float layers."""
    plain = type(layer) in QUANTIZED or isinstance(layer, QuantLayer)
    if not plain or channel_dimension(layer) is None or getattr(layer, "groups", 1) != 1:
        raise ConversionError(
            f"a {type(layer).__name__} takes no branch of low rank",
            where="LowRankLayer",
            why="only linear layers and convolutions of one group are one matrix",
        )
    weight = layer.weight
    full = min(len(weight), weight[0].numel())
    if not 1 <= rank < full:
        raise ConversionError(
            f"a branch of rank {rank}",
            where="LowRankLayer",
            why=f"the weight, {len(weight)} by {weight[0].numel()}, has rank {full}",
            fix="a rank far below that",
        )
    kind: Any = next(k for k in CHANNELS if isinstance(layer, k))
    options: dict[str, Any] = {name: getattr(layer, name) for name in QUANTIZED[kind].geometry}
    like = {"device": weight.device, "dtype": weight.dtype, "bias": False}
    if kind is nn.Linear:
        down, up = nn.Linear(layer.in_features, rank, **like), nn.Linear(rank, len(weight), **like)
    else:
        down = kind(**{**options, "out_channels": rank}, **like)
        up = kind(rank, len(weight), 1, **like)
    for factor in (down, up):
        nn.init.zeros_(factor.weight)
        factor.weight.requires_grad_(weight.requires_grad)
    return down, up


def _factors(weight: Tensor, rank: int, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """U ``(out, r)`` and V ``(r, in * taps)``."""
    matrix = weight.flatten(1).double()
    scale = matrix.new_ones(matrix.shape[1])
    if importance is not None:
        m = importance.detach().to(matrix.device, torch.float64)
        if m.shape != weight.shape[1:2] or not bool((m.isfinite() & (m >= 0)).all()):
            raise ConversionError(
                f"importance of shape {tuple(m.shape)} for {weight.shape[1]} channels",
                where="LowRankLayer",
                why="there is one for each input channel, finite and not negative",
            )
        # Channels that are never used have to be divided by theirs all the same.
        m = m.clamp(min=1e-4 * float(m.max()) or 1.0)
        scale = m.repeat_interleave(matrix.shape[1] // len(m))
    scaled = matrix * scale
    # Of the smaller Gram matrix: the few largest singular vectors alone are needed.
    tall = len(scaled) > scaled.shape[1]
    gram = scaled.mT @ scaled if tall else scaled @ scaled.mT
    values, vectors = torch.linalg.eigh(gram)
    sigma = values[-rank:].clamp(min=0).sqrt().sqrt().clamp(min=1e-12)
    own = vectors[:, -rank:]
    if tall:
        return scaled @ own / sigma, (own * sigma).mT / scale
    return own * sigma, (own / sigma).mT @ scaled / scale
