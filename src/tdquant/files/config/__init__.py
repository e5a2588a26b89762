"""Configuration files: reading them, and finding every mistake in them before anything runs."""

from tdquant.files.config.checking import check_keys, foreign_keys
from tdquant.files.config.reading import read_config
from tdquant.files.config.training import TrainingOptions, training_mistakes, training_options

__all__ = [
    "TrainingOptions",
    "check_keys",
    "foreign_keys",
    "read_config",
    "training_mistakes",
    "training_options",
]
