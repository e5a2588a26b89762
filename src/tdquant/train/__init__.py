"""Training quantized models, and float ones."""

from tdquant.train.callbacks import Callback, JsonLog, Run, SampleGrid, ShowProgress, TensorBoard
from tdquant.train.groups import parameter_groups
from tdquant.train.loop import Training, train
from tdquant.train.objective import DiffusionObjective

__all__ = [
    "Callback",
    "DiffusionObjective",
    "JsonLog",
    "Run",
    "SampleGrid",
    "ShowProgress",
    "TensorBoard",
    "Training",
    "parameter_groups",
    "train",
]
