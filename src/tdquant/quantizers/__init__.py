"""Quantizers: a grid and a scale on one tensor, an activation or a weight."""

from tdquant.quantizers.activation import ActivationQuantizer, activation_quantizers
from tdquant.quantizers.offset import OffsetQuantizer
from tdquant.quantizers.weight import FrozenWeight, NoiseWeight, WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "FrozenWeight",
    "NoiseWeight",
    "OffsetQuantizer",
    "WeightQuantizer",
    "activation_quantizers",
]
