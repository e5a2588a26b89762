"""Calibration: activation scales from calls of the float model, judged by the error at the model's
output.
"""

from tdquant.calibration.observe import Observations, observe
from tdquant.calibration.report import Calibration, LayerChoice, SplitChoice
from tdquant.calibration.run import calibrate

__all__ = ["Calibration", "LayerChoice", "Observations", "SplitChoice", "calibrate", "observe"]
