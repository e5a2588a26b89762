"""Reconstruction: codes of weights chosen by what the model computes with them, and channel
balancing, which makes weights and inputs easier to round.
"""

from tdquant.refine.balancing import balance
from tdquant.refine.reconstruction.adaround import Rates
from tdquant.refine.reconstruction.job import BlockReport
from tdquant.refine.reconstruction.run import Reconstruction, reconstruct

__all__ = ["BlockReport", "Rates", "Reconstruction", "balance", "reconstruct"]
