"""Whole jobs on folders: training from a configuration, and sampling from what it left."""

from tdquant.runs.folder import RunFolder
from tdquant.runs.opening import open_pipe
from tdquant.runs.pictures import sample_pictures
from tdquant.runs.training import run_training

__all__ = ["RunFolder", "open_pipe", "run_training", "sample_pictures"]
