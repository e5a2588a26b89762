from . import diffusion, errors, layers, models, scales
from .calibration import observe
from .calls import denoisers, trajectories
from .choice import Budget, calibrate
from .clock import is_quantized
from .diffusion import sample
from .errors import TDQError
from .freezing import freeze, is_frozen
from .integrations.pipelines import export_pipeline, open_pipeline
from .lab import data, metrics
from .lab.evaluation import Record, evaluate, evaluate_images
from .lab.report import report
from .lowering import (
    Session,
    compile,
    export,
    open_session,
    register_backend,
    register_exporter,
)
from .model_summary import summary
from .quantization import quantize
from .recipe import Recipe
from .refine.balancing import balance
from .refine.correction import correct
from .refine.reconstruction import reconstruct
from .refine.search import search, sensitivity
from .storage import load, save
from .training import train

__version__: str

__all__ = [
    "Budget",
    "Recipe",
    "Record",
    "Session",
    "TDQError",
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
    "is_quantized",
    "layers",
    "load",
    "metrics",
    "models",
    "observe",
    "open_pipeline",
    "open_session",
    "quantize",
    "reconstruct",
    "register_backend",
    "register_exporter",
    "report",
    "sample",
    "save",
    "scales",
    "search",
    "sensitivity",
    "summary",
    "train",
    "trajectories",
]
