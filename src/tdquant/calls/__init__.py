"""Calls of a denoiser, recorded: what calibration, training, correction and export see of it."""

from tdquant.calls.from_pipeline import Recording, denoisers, trajectories

__all__ = ["Recording", "denoisers", "trajectories"]
