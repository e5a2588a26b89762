"""Recorded calls of a denoiser, on which it is calibrated, trained, corrected and exported."""

from tdquant.calls.dispatch import trajectories
from tdquant.calls.from_denoiser import Trajectories, record_denoiser
from tdquant.calls.from_pipeline import Recording, denoisers, record_pipeline
from tdquant.calls.shards import Shards, read_shards

__all__ = [
    "Recording",
    "Shards",
    "Trajectories",
    "denoisers",
    "read_shards",
    "record_denoiser",
    "record_pipeline",
    "trajectories",
]
