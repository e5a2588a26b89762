"""Quantizers: a grid and a scale on one tensor, an activation or a weight."""

from tdquant.quantizers.activation import ActivationQuantizer, activation_quantizers
from tdquant.quantizers.coded import CodedWeight
from tdquant.quantizers.offset import OffsetQuantizer
from tdquant.quantizers.rounding import LearnedRounding, RoundedWeight, ShiftedWeight
from tdquant.quantizers.weight import FrozenWeight, NoiseWeight, WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "CodedWeight",
    "FrozenWeight",
    "LearnedRounding",
    "NoiseWeight",
    "OffsetQuantizer",
    "RoundedWeight",
    "ShiftedWeight",
    "WeightQuantizer",
    "activation_quantizers",
]
