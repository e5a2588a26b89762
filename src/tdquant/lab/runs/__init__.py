"""Whole jobs on folders: training from a configuration, and sampling into a folder of images."""

from tdquant.lab.runs.pictures import sample_pictures
from tdquant.lab.runs.training import run_training

__all__ = ["run_training", "sample_pictures"]
