r"""A linear layer behind a rotation of its input.

    y = (W R^-1) (R x) + b,    R = H D,    H_ij = (-1)^{popcount(i & j)},   D = diag(+-n^(-1/2))

R mixes each block of n input channels by a Hadamard matrix, with signs drawn from a seed. The same
in exact arithmetic. A channel that is far larger than the rest is spread over its block, so that
one step fits all of them, and which channel it is does not matter: the rotation needs no
statistics. The weight is rotated once, in float64.

H of n = ab is the Kronecker product of those of a and b: two products of matrices of at most 32
rows with entries 1 and -1, 48 additions a value instead of 512.

References:
    Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024
    (https://arxiv.org/abs/2404.00456), section 3.
    Chee et al., QuIP: 2-Bit Quantization of Large Language Models With Guarantees, 2023
    (https://arxiv.org/abs/2307.13304): random signs before the rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ConversionError
from tdquant.layers.base import QUANTIZED, QuantLayer
from tdquant.layers.structure import WrappedLayer
from tdquant.scales.base import KeepFloat32Mixin

SMALLEST, LARGEST = 16, 512
"""Channels of a block, powers of two."""


class HadamardRotation(KeepFloat32Mixin):
    """Rotates the last dimension in blocks: ``x (*, C) -> R x``, in the dtype of x.

    Arguments:
        width: C.
        block: n, a power of two that divides C.
        seed: Of the signs.
    """

    diagonal: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, width: int, block: int, seed: int) -> None:
        super().__init__()
        self.block, self.seed = block, seed
        draw = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (width,), generator=draw, device="cpu") * 2.0 - 1
        # The only factor that is not 1 or -1 comes first: whatever adds up afterwards, in whatever
        # instructions, multiplies exactly.
        self.register_buffer("diagonal", signs * block**-0.5)
        bits = block.bit_length() - 1
        self.register_buffer("left", _hadamard(bits // 2), persistent=False)
        self.register_buffer("right", _hadamard(bits - bits // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._mixed(x * self.diagonal).to(x.dtype)

    def undone(self, weight: Tensor) -> Tensor:
        """``W R^-1`` of a weight ``(*, C)``, in its dtype."""
        w = weight.double() / self.diagonal.to(weight.device).double()
        return (self._mixed(w) / self.block).to(weight.dtype)

    def redone(self, weight: Tensor) -> Tensor:
        """``W R`` of a weight ``(*, C)``, in its dtype."""
        diagonal = self.diagonal.to(weight.device).double()
        return (self._mixed(weight.double()) * diagonal).to(weight.dtype)

    def _mixed(self, x: Tensor) -> Tensor:
        left, right = (m.to(x.device, x.dtype) for m in (self.left, self.right))
        blocks = x.unflatten(-1, (x.shape[-1] // self.block, left.shape[0], right.shape[0]))
        return (left @ (blocks @ right)).flatten(-3)

    def extra_repr(self) -> str:
        return f"width={len(self.diagonal)}, block={self.block}, seed={self.seed}"


class RotatedLayer(WrappedLayer):
    """A rotation and a plain linear layer, float or quantized, ``(*, in) -> (*, out)``.

    Arguments:
        layer: The inner layer, its weight not changed.
        rotation: Of its input.
    """

    structure = "rotation"

    def __init__(self, layer: nn.Module, rotation: HadamardRotation) -> None:
        super().__init__(layer)
        self.rotation = rotation

    @classmethod
    @torch.no_grad()
    def from_float(cls, layer: nn.Module, **spec: Any) -> RotatedLayer:
        """The rotated layer, with a weight of its own.

        Arguments:
            layer: A linear layer, which stays as it is.
            spec: ``seed`` and ``block``, see ``from_quantized``.

        Raises:
            ConversionError: The layer is not a plain linear one, or its width has no power of two
                of at least 16 as a factor.
        """
        rotation = _rotation(layer, **spec)
        weight: Any = layer.weight
        inner = QUANTIZED[nn.Linear].from_float(layer).to_float()
        inner.weight = nn.Parameter(rotation.undone(weight.detach()), weight.requires_grad)
        return cls(inner, rotation).train(layer.training)

    @classmethod
    @torch.no_grad()
    def from_quantized(cls, layer: QuantLayer, seed: int = 0, block: int = 0) -> RotatedLayer:
        """The quantized layer behind a rotation, its weight rotated and quantized by steps of its
        own. The input quantizer is the very one of ``layer``: a scale that is calibrated already
        was found for inputs that are not rotated.

        Arguments:
            layer: A live quantized linear layer, which stays as it is.
            seed: Of the signs.
            block: n; 0 for the largest power of two that divides the width, up to 512.

        Raises:
            ConversionError: As ``from_float``, or the weight is frozen.
        """
        rotation = _rotation(layer, seed, block)
        inner = layer.with_weight(rotation.undone(layer.weight.detach()), "RotatedLayer")
        return cls(inner, rotation).train(layer.training)

    def specification(self) -> dict[str, Any]:
        return {"seed": self.rotation.seed, "block": self.rotation.block}

    def whole_weight(self) -> Tensor:
        return self.rotation.redone(self.layer.weight)

    def shares(self, change: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return [(self.layer, self.rotation.undone(change))]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.rotation(x))


def _hadamard(bits: int) -> Tensor:
    """The Hadamard matrix of ``2^bits`` rows, of 1 and -1."""
    found = torch.ones(1, 1, device="cpu", dtype=torch.float32)
    two = torch.tensor([[1, 1], [1, -1]], device="cpu", dtype=torch.float32)
    for _ in range(bits):
        found = torch.kron(two, found)
    return found


def _rotation(layer: Any, seed: int = 0, block: int = 0) -> HadamardRotation:
    if type(layer) is not nn.Linear and not isinstance(layer, QUANTIZED[nn.Linear]):
        raise ConversionError(
            f"a {type(layer).__name__} cannot be rotated",
            where="RotatedLayer",
            why="channels are mixed along the last dimension, as nn.Linear has them",
            fix="name linear layers",
        )
    width = layer.in_features
    block = block or min(width & -width, LARGEST)
    if width % block or block & (block - 1) or not SMALLEST <= block <= LARGEST:
        raise ConversionError(
            f"blocks of {block} for {width} channels",
            where="RotatedLayer",
            why=f"a block is a power of two from {SMALLEST} to {LARGEST} that divides the width",
            fix="leave the layer as it is, or divide its channels by factors (BalancedLayer)",
        )
    device = layer.weight.device
    rotation = HadamardRotation(width, block, seed)
    return rotation if device.type == "meta" else rotation.to(device)
