"""Configuration files: reading them, and finding every mistake in them before anything runs."""

from tdquant.files.config.checking import check_keys, complain, foreign_keys
from tdquant.files.config.latent_diffusion import check_latent_diffusion
from tdquant.files.config.reading import read_config
from tdquant.files.config.training import TRAINING, Option, training_mistakes, training_options

__all__ = [
    "TRAINING",
    "Option",
    "check_keys",
    "check_latent_diffusion",
    "complain",
    "foreign_keys",
    "read_config",
    "training_mistakes",
    "training_options",
]
