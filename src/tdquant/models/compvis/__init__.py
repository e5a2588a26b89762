"""Latent-diffusion models in their published format: the UNet, first stages, checkpoints."""

from tdquant.models.compvis.export import as_diffusers, save_compvis
from tdquant.models.compvis.load import load_compvis
from tdquant.models.compvis.unet import UNetModel

__all__ = ["UNetModel", "as_diffusers", "load_compvis", "save_compvis"]
