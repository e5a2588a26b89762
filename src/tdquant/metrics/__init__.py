"""Metrics: how good generated images are, and how far a quantized model is from the float one."""

from tdquant.metrics.bootstrap import Interval, bootstrap
from tdquant.metrics.features import FeatureNetwork, features_of
from tdquant.metrics.frechet import FrechetDistance
from tdquant.metrics.gaussians import Statistics
from tdquant.metrics.networks import NETWORKS, load_network
from tdquant.metrics.paired import PAIRED, mse, paired, psnr, ssim
from tdquant.metrics.perceptual import Lpips
from tdquant.metrics.sets import SET_METRICS, SetMetric
from tdquant.metrics.sqnr import sqnr_over_time
from tdquant.metrics.text import ClipScore, clip_score

__all__ = [
    "NETWORKS",
    "PAIRED",
    "SET_METRICS",
    "ClipScore",
    "FeatureNetwork",
    "FrechetDistance",
    "Interval",
    "Lpips",
    "SetMetric",
    "Statistics",
    "bootstrap",
    "clip_score",
    "features_of",
    "load_network",
    "mse",
    "paired",
    "psnr",
    "sqnr_over_time",
    "ssim",
]
