"""Training quantized models, and float ones."""

from tdquant.training.callbacks import (
    Callback,
    JsonLog,
    Run,
    SampleGrid,
    ShowProgress,
    TensorBoard,
)
from tdquant.training.groups import parameter_groups
from tdquant.training.loop import Training, train
from tdquant.training.objective import DiffusionObjective
from tdquant.training.settings import Checkpointing, Optimization

__all__ = [
    "Callback",
    "Checkpointing",
    "DiffusionObjective",
    "JsonLog",
    "Optimization",
    "Run",
    "SampleGrid",
    "ShowProgress",
    "TensorBoard",
    "Training",
    "parameter_groups",
    "train",
]
