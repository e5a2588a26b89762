"""Reconstruction: codes of weights chosen by the output of blocks."""

from tdquant.refine.reconstruction.adaround import Rates
from tdquant.refine.reconstruction.job import BlockReport
from tdquant.refine.reconstruction.run import Reconstruction, reconstruct

__all__ = ["BlockReport", "Rates", "Reconstruction", "reconstruct"]
