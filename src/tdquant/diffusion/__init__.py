"""Generating with any denoiser ``model(x, t)``: schedulers, sampling."""

from tdquant.diffusion.guidance import Condition
from tdquant.diffusion.sampling import sample
from tdquant.diffusion.schedulers import SCHEDULERS, make_scheduler

__all__ = ["SCHEDULERS", "Condition", "make_scheduler", "sample"]
