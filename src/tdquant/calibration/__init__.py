"""Calibration: activation scales from calls of the float model, judged by the error at the model's
output. The verb ``calibrate`` is in ``tdquant.choice``, above the remedies that it uses.
"""

from tdquant.calibration.observe import Observations, observe
from tdquant.calibration.report import Calibration, LayerChoice, SplitChoice

__all__ = ["Calibration", "LayerChoice", "Observations", "SplitChoice", "observe"]
