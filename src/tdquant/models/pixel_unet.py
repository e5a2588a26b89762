"""A UNet on pixel patches: space to depth, a diffusers ``UNet2DModel``, depth to space.

    x (B, C, H, W)  ->  (B, C r^2, H/r, W/r)  ->  UNet2DModel  ->  (B, C, H, W)

With r = 2 the network runs at a quarter of the pixels, which is what makes a good 32x32 model
train and sample in minutes on a laptop.

References:
    Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network, 2016 (https://arxiv.org/abs/1609.05158).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.support.optional import require


class PixelUNet(nn.Module):
    """``model(x, timestep)`` over patches of ``patch`` x ``patch`` pixels.

    Arguments:
        patch: Side r of a patch in pixels.
        unet: Keyword arguments of ``diffusers.UNet2DModel``, whose channels count patches: ``C
            r^2``.
    """

    def __init__(self, patch: int, unet: dict[str, Any]) -> None:
        super().__init__()
        self.config = {"patch": patch, "unet": unet}
        self.patch = patch
        self.unet = require("diffusers", "diffusers").UNet2DModel(**unet)

    def forward(self, x: Tensor, timestep: Tensor | float) -> Tensor:
        """Maps noisy images ``(B, C, H, W)`` and timesteps ``()`` or ``(B,)`` to the prediction
        ``(B, C, H, W)``.
        """
        patches = F.pixel_unshuffle(x, self.patch)
        return F.pixel_shuffle(self.unet(patches, timestep, return_dict=False)[0], self.patch)
