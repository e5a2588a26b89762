"""Denoisers that come with tdquant, and ways to build and load others."""

from tdquant.models.compvis import UNetModel, as_diffusers, load_compvis, save_compvis
from tdquant.models.embedded import EMBEDDED, load_embedded
from tdquant.models.pipe import Pipe
from tdquant.models.pixel_unet import PixelUNet

__all__ = [
    "EMBEDDED",
    "Pipe",
    "PixelUNet",
    "UNetModel",
    "as_diffusers",
    "load_compvis",
    "load_embedded",
    "save_compvis",
]
