"""Correction: a gain and a bias of the model's output over time."""

from tdquant.refine.correction.held_out import CorrectionReport, fit_correction
from tdquant.refine.correction.run import correct

__all__ = ["CorrectionReport", "correct", "fit_correction"]
