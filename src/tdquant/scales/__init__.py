"""Scales: how the quantization step of a tensor follows the timestep."""

from tdquant.scales.bank import BankedScale, ScaleBank, bank_tables
from tdquant.scales.base import SCALES, Scale
from tdquant.scales.curves import Curves
from tdquant.scales.dynamic import DynamicScale
from tdquant.scales.noise import NoiseScale
from tdquant.scales.pact import PactScale
from tdquant.scales.pending import PendingScale
from tdquant.scales.published import PublishedScale
from tdquant.scales.static import StaticLogScale, StaticScale
from tdquant.scales.table import TableScale
from tdquant.scales.temporal import TemporalScale

__all__ = [
    "SCALES",
    "BankedScale",
    "Curves",
    "DynamicScale",
    "NoiseScale",
    "PactScale",
    "PendingScale",
    "PublishedScale",
    "Scale",
    "ScaleBank",
    "StaticLogScale",
    "StaticScale",
    "TableScale",
    "TemporalScale",
    "bank_tables",
]
