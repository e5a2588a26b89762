"""Quantized layers: plain subclasses of torch's, and the registry from float type to quantized
type.
"""

from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import QUANTIZED, QuantLayer, quantized_layers, replace_module
from tdquant.layers.conv import CONVOLUTIONS, QuantConv1d, QuantConv2d, QuantConv3d
from tdquant.layers.linear import QuantLinear
from tdquant.layers.low_rank import LowRankLayer
from tdquant.layers.rotation import RotatedLayer
from tdquant.layers.split import SplitLayer
from tdquant.layers.structure import STRUCTURES, StructuredLayer, structured_layers

__all__ = [
    "CONVOLUTIONS",
    "QUANTIZED",
    "STRUCTURES",
    "BalancedLayer",
    "LowRankLayer",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantLayer",
    "QuantLinear",
    "RotatedLayer",
    "SplitLayer",
    "StructuredLayer",
    "quantized_layers",
    "replace_module",
    "structured_layers",
]
