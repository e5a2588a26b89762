"""Quantized layers: plain subclasses of torch's, and the registry from float type to quantized
type.
"""

from tdquant.layers.base import QUANTIZED, QuantLayer, quantized_layers, replace_module
from tdquant.layers.conv import QuantConv1d, QuantConv2d
from tdquant.layers.linear import QuantLinear

__all__ = [
    "QUANTIZED",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "quantized_layers",
    "replace_module",
]
