"""Denoisers that come with tdquant, and ways to build and load others."""

from tdquant.models.embedded import EMBEDDED, Pipe, load_embedded
from tdquant.models.pixel_unet import PixelUNet

__all__ = ["EMBEDDED", "Pipe", "PixelUNet", "load_embedded"]
