"""Quantizers: a grid and a scale on one tensor, an activation or a weight."""

from tdquant.quantizers.activation import ActivationQuantizer, activation_quantizers
from tdquant.quantizers.weight import FrozenWeight, WeightQuantizer

__all__ = ["ActivationQuantizer", "FrozenWeight", "WeightQuantizer", "activation_quantizers"]
