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
from tdquant.frozen import freeze, is_frozen
from tdquant.recipe import LayerRecipe, Recipe
from tdquant.runtime import compile
from tdquant.storage import load, save
from tdquant.summary import Summary, summary
from tdquant.train import Training, train

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "LayerRecipe",
    "Observations",
    "Recipe",
    "Summary",
    "TDQError",
    "Training",
    "calibrate",
    "compile",
    "data",
    "diffusion",
    "errors",
    "freeze",
    "is_frozen",
    "load",
    "metrics",
    "models",
    "observe",
    "quantize",
    "sample",
    "save",
    "summary",
    "train",
    "trajectories",
]
