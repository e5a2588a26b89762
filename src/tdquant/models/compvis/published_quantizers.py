r"""The quantizers of TDQ's authors: grids, offset and initial step sizes, as in their code.

With n = 2^b - 1 codes,

    weights      q = -(n // 2 - 1) .. n // 2 - 1        s = max(w) / (n // 2 - 1), one a tensor
    inputs       q = -(n // 2 - 1) .. n // 2 - 1        s = (mean + 3 sigma) / (n // 2 - 1)
    after SiLU   q = 0 .. n - 1 from o = -0.2785        s = (mean + 16 sigma) / (n - 1)

so that 4 bits are 13 codes, or 15 after SiLU. Inputs after SiLU are those of the two 3x3
convolutions of a residual block; the second one has dropout of rate p in front, and in training
its o is -0.2785 / (1 - p). The first and last convolution, the time MLP, the projections of its
output, and the products of attention stay in float.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import ConversionError
from tdquant.layers import QuantLayer
from tdquant.numerics.grid import MAX_BITS, Grid
from tdquant.quantizers import ActivationQuantizer, OffsetQuantizer, WeightQuantizer
from tdquant.scales import PendingScale, PublishedScale, Scale, StaticScale

AFTER_SILU = ("*.in_layers.2", "*.out_layers.3")
AFTER_DROPOUT = "*.out_layers.3"


def after_silu(path: str) -> bool:
    """Whether the input of the layer at ``path`` comes from SiLU."""
    return any(fnmatchcase(path, pattern) for pattern in AFTER_SILU)


def symmetric(count: int) -> Grid:
    """The symmetric codes of a quantizer whose ``n_lv`` is ``count``."""
    high = count // 2 - 1
    return Grid(count.bit_length(), -high, high)


def activation_quantizer(
    unet: nn.Module, path: str, count: int, scale: Scale, wanted: str, clock: Clock
) -> ActivationQuantizer:
    """Makes the quantizer for the input of the layer at ``path``, with ``n_lv`` of ``count``.

    ``wanted`` is the kind of the scale once it is calibrated.
    """
    config: Any = getattr(unet, "config", {})
    options = {"features": config.get("model_channels", 64)} if wanted == "published" else {}
    if not after_silu(path):
        return ActivationQuantizer(symmetric(count), scale, clock, True, wanted, options)
    rate = config.get("dropout", 0.0) if fnmatchcase(path, AFTER_DROPOUT) else 0.0
    grid = Grid(count.bit_length(), 0, count - 1)
    return OffsetQuantizer(grid, scale, clock, wanted=wanted, options=options, dropout=float(rate))


def weight_start(weight: Tensor, grid: Grid, where: str) -> Tensor:
    """The published initial step size of a weight, ``max(w) / qmax``, ``()``.

    Where no weight is positive, the largest absolute value is taken.

    Raises:
        ConversionError: Weights are NaN, infinite or all zero.
    """
    values = weight.detach().float()
    largest = values.max()
    if not values.isfinite().all() or not values.any():
        raise ConversionError(
            "weights are NaN, infinite or all zero",
            where=where,
            why="no step size can be computed from them",
            fix="train the float model first, or repair the checkpoint",
        )
    return (largest if largest > 0 else values.abs().max()) / grid.high


def equip(
    unet: nn.Module,
    path: str,
    layer: QuantLayer,
    bits: tuple[int, int],
    dynamic: bool,
    clock: Clock,
) -> QuantLayer:
    """Gives a layer the published quantizers, its activation scale still to be calibrated.

    Arguments:
        unet: A latent-diffusion UNet.
        path: Path of the layer.
        layer: The layer, without quantizers.
        bits: Bits of weight and input, 3 to 16; more than that is float.
        dynamic: The scale is TDQ's network; else it is static (LSQ).
        clock: The UNet's clock.

    Raises:
        ConversionError: The model is of another class, or the weights cannot be quantized.
    """
    if not hasattr(unet, "model_channels"):
        raise ConversionError(
            "the published grids are not known for this model",
            where=type(unet).__name__,
            why="which inputs come from SiLU is known of latent diffusion's UNetModel",
            fix="Recipe(grid='auto')",
        )
    weights, activations = bits
    if activations <= MAX_BITS:
        wanted = PublishedScale.kind if dynamic else StaticScale.kind
        pending = PendingScale(wanted, path)
        count = 2**activations - 1
        layer.input_quantizer = activation_quantizer(unet, path, count, pending, wanted, clock)
    if weights <= MAX_BITS:
        grid = symmetric(2**weights - 1)
        layer.weight_quantizer = WeightQuantizer(grid, weight_start(layer.weight, grid, path))
    return layer
