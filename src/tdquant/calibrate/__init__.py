"""Calibration: activation scales from calls of the float model, judged by the error at the model's
output.
"""

from tdquant.calibrate.observe import Observations, observe
from tdquant.calibrate.run import Calibration, LayerChoice, calibrate

__all__ = ["Calibration", "LayerChoice", "Observations", "calibrate", "observe"]
