"""Temporal Dynamic Quantization for diffusion models: activation scales that follow the timestep.

    model = tdq.quantize(model, tdq.Recipe(weights=4, activations=8))
    tdq.calibrate(model, batches)
    frozen = tdq.freeze(model)

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, NeurIPS 2023
    (https://arxiv.org/abs/2306.02316).
"""

from tdquant import data, diffusion, errors, integrations, metrics, models
from tdquant.calibrate import (
    Calibration,
    Observations,
    calibrate,
    denoisers,
    observe,
    trajectories,
)
from tdquant.convert import quantize
from tdquant.correct import correct
from tdquant.diffusion import sample
from tdquant.errors import TDQError
from tdquant.evaluate import Record, evaluate, evaluate_images
from tdquant.export import export
from tdquant.frozen import freeze, is_frozen
from tdquant.integrations.pipelines import export_pipeline, open_pipeline
from tdquant.recipe import LayerRecipe, Recipe
from tdquant.reconstruct import Reconstruction, balance, reconstruct
from tdquant.report import report
from tdquant.runtime import Session, compile, open_session
from tdquant.search import Search, Sensitivity, search, sensitivity
from tdquant.storage import load, save
from tdquant.summary import Summary, summary
from tdquant.train import Training, train

__version__ = "0.1.0"

integrations.register()

__all__ = [
    "Calibration",
    "LayerRecipe",
    "Observations",
    "Recipe",
    "Reconstruction",
    "Record",
    "Search",
    "Sensitivity",
    "Session",
    "Summary",
    "TDQError",
    "Training",
    "balance",
    "calibrate",
    "compile",
    "correct",
    "data",
    "denoisers",
    "diffusion",
    "errors",
    "evaluate",
    "evaluate_images",
    "export",
    "export_pipeline",
    "freeze",
    "is_frozen",
    "load",
    "metrics",
    "models",
    "observe",
    "open_pipeline",
    "open_session",
    "quantize",
    "reconstruct",
    "report",
    "sample",
    "save",
    "search",
    "sensitivity",
    "summary",
    "train",
    "trajectories",
]
