from . import diffusion, errors, models
from .calibration import Calibration, Observations, calibrate, observe
from .calls import denoisers, trajectories
from .diffusion import sample
from .errors import TDQError
from .freezing import freeze, is_frozen
from .integrations.pipelines import export_pipeline, open_pipeline
from .lab import data, metrics
from .lab.evaluation import Record, evaluate, evaluate_images
from .lab.report import report
from .lowering import Session, compile, export, open_session
from .model_summary import Summary, summary
from .quantization import quantize
from .recipe import LayerRecipe, Recipe
from .refine.balancing import balance
from .refine.correction import correct
from .refine.reconstruction import Reconstruction, reconstruct
from .refine.search import Search, Sensitivity, search, sensitivity
from .storage import load, save
from .training import Training, train

__version__: str

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
