"""Reconstruction: codes of weights chosen by what the model computes with them, and channel
balancing, which makes weights and inputs easier to round.
"""

from tdquant.reconstruct.adaround import Rates
from tdquant.reconstruct.balancing import balance
from tdquant.reconstruct.job import BlockReport
from tdquant.reconstruct.run import Reconstruction, reconstruct

__all__ = ["BlockReport", "Rates", "Reconstruction", "balance", "reconstruct"]
