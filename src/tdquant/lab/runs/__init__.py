"""Whole jobs on folders: training from a configuration, and sampling from what it left."""

from tdquant.lab.runs.folder import RunFolder
from tdquant.lab.runs.opening import open_pipe
from tdquant.lab.runs.pictures import sample_pictures
from tdquant.lab.runs.training import run_training

__all__ = ["RunFolder", "open_pipe", "run_training", "sample_pictures"]
