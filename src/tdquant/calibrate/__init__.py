"""Calibration: activation scales from calls of the float model, judged by the error at the model's
output.
"""

from tdquant.calibrate.observe import Observations, observe
from tdquant.calibrate.recording import Recording, denoisers, trajectories
from tdquant.calibrate.report import Calibration, LayerChoice, SplitChoice
from tdquant.calibrate.run import calibrate

__all__ = [
    "Calibration",
    "LayerChoice",
    "Observations",
    "Recording",
    "SplitChoice",
    "calibrate",
    "denoisers",
    "observe",
    "trajectories",
]
