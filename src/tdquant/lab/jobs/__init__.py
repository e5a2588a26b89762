"""``tdquant quantize``: from a pipeline or a checkpoint file to a folder that samples."""

from tdquant.lab.jobs.options import Outcome, QuantizeOptions
from tdquant.lab.jobs.run import run_job

__all__ = ["Outcome", "QuantizeOptions", "run_job"]
