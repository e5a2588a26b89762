"""Temporal Dynamic Quantization for diffusion models: activation scales that follow the timestep.

    model = tdq.quantize(model, tdq.Recipe(weights=4, activations=8))
    tdq.calibrate(model, batches)
    frozen = tdq.freeze(model)

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, NeurIPS 2023
    (https://arxiv.org/abs/2306.02316).
"""

from tdquant import data, diffusion, errors, metrics, models
from tdquant.calibrate import Calibration, Observations, calibrate, observe
from tdquant.convert import quantize
from tdquant.diffusion import sample, trajectories
from tdquant.errors import TDQError
from tdquant.export import export
from tdquant.frozen import freeze, is_frozen
from tdquant.recipe import LayerRecipe, Recipe
from tdquant.runtime import Session, compile, open_session
from tdquant.storage import load, save
from tdquant.summary import Summary, summary
from tdquant.train import Training, train

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "LayerRecipe",
    "Observations",
    "Recipe",
    "Session",
    "Summary",
    "TDQError",
    "Training",
    "calibrate",
    "compile",
    "data",
    "diffusion",
    "errors",
    "export",
    "freeze",
    "is_frozen",
    "load",
    "metrics",
    "models",
    "observe",
    "open_session",
    "quantize",
    "sample",
    "save",
    "summary",
    "train",
    "trajectories",
]
