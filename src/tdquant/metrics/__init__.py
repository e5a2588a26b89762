"""Metrics: how good generated images are, and how far a quantized model is from the float one."""

from tdquant.metrics.frechet import FrechetDistance, Statistics
from tdquant.metrics.paired import PAIRED, mse, paired, psnr, ssim
from tdquant.metrics.sqnr import sqnr_over_time

__all__ = [
    "PAIRED",
    "FrechetDistance",
    "Statistics",
    "mse",
    "paired",
    "psnr",
    "sqnr_over_time",
    "ssim",
]
