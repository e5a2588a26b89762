"""AlexNet and VGG-16 without classifiers: second opinions that install from a package registry.

Their weights are those of the shift-tolerant LPIPS, trained on ImageNet: max pooling and the first
convolution of AlexNet have stride 1, and a fixed binomial filter of stride 2 is behind them. Of
the package only the files of weights are read; none of its code is run.

References:
    Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, 2022
    (https://arxiv.org/abs/2207.13686); the weights are under the BSD-2 licence.
    Zhang, Making Convolutional Networks Shift-Invariant Again, 2019
    (https://arxiv.org/abs/1904.11486), for the filters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.files.digests import file_digest
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.weights import loading, read_state
from tdquant.support.optional import require

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIDE = 64
PAD = 2


class Blur(nn.Module):
    """``(N, C, H, W) -> (N, C, (H + 3) // 2, (W + 3) // 2)``: each channel filtered by its own
    3x3 ``filt`` at every second pixel, borders reflected by two pixels.
    """

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (PAD,) * 4, mode="reflect")
        return F.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


class ShiftTolerant(FeatureNetwork):
    """``uint8 images (N, 3, H, W) -> features (N, D)``, the mean of the last map.

    Images of any side are resized to 64 pixels, bilinear with antialiasing, and normalised by the
    mean and standard deviation of ImageNet. There are no other kinds of features: the published
    weights have no classifier.

    Arguments:
        weights: A file of weights; None takes the installed package's. With other weights than
            the published ones ``title`` has their digest.

    Raises:
        MissingDependencyError: No file is given, and the extra ``vgg`` is not installed.
        DataError: The weights are damaged or of another network.
    """

    kinds = ("pooled",)
    file: ClassVar[str]
    checksum: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        if weights is None:
            package = require("stlpips_pytorch", "vgg")
            weights = Path(str(package.__file__)).parent / "weights" / "vST0.0" / self.file
        self.layers = self.build().float()
        # Keys are net.sliceK.I.NAME, with I the place among all layers; heads of the LPIPS are
        # beside them.
        state = {
            match[1]: value
            for name, value in read_state(weights).items()
            if (match := re.fullmatch(r"net\.slice\d+\.(.+)", name))
        }
        with loading(weights, fix=f"stlpips-pytorch's {self.file}"):
            self.layers.load_state_dict(state)
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float32).view(3, 1, 1))
        self.eval().requires_grad_(False)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not file_digest(weights).startswith(self.checksum):
            self.title = f"{self.title} (weights {self.digest[:8]})"

    def build(self) -> nn.Sequential:
        """Its layers, without weights."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """Resized and normalised images ``(N, 3, 64, 64)``."""
        x = images.float() / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def run(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": self.layers(self.prepare(images)).mean((2, 3))}


class AlexNet(ShiftTolerant):
    """Shift-tolerant AlexNet, 256 features; see ``ShiftTolerant``."""

    name = "alexnet"
    title = "shift-tolerant AlexNet"
    num_features = 256
    file = "alex_shift_tolerant.pth"
    checksum = "b356b382"

    def build(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, padding=2), Blur(64), nn.ReLU(), nn.MaxPool2d(3, 1), Blur(64),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 1), Blur(192),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip


class Vgg16(ShiftTolerant):
    """Shift-tolerant VGG-16, 512 features; see ``ShiftTolerant``."""

    name = "vgg16"
    title = "shift-tolerant VGG-16"
    num_features = 512
    file = "vgg_shift_tolerant.pth"
    checksum = "44597da6"

    def build(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = 3
        for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            if layers:
                layers += [nn.MaxPool2d(2, 1), Blur(channels)]
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        return nn.Sequential(*layers)
