"""Metrics: how good generated images are, and how far a quantized model is from the float one."""

from tdquant.lab.metrics.bootstrap import Interval, bootstrap
from tdquant.lab.metrics.features import FeatureNetwork, features_of
from tdquant.lab.metrics.frechet import FrechetDistance
from tdquant.lab.metrics.gaussians import Statistics
from tdquant.lab.metrics.networks import NETWORKS, load_network
from tdquant.lab.metrics.paired import PAIRED, mse, paired, psnr, ssim
from tdquant.lab.metrics.perceptual import Lpips
from tdquant.lab.metrics.sets import SET_METRICS, SetMetric
from tdquant.lab.metrics.sqnr import sqnr_over_time
from tdquant.lab.metrics.text import ClipScore, clip_score

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
