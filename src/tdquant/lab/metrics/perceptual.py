r"""LPIPS: the distance of two images in the features of a network trained to classify.

    d(a, b) = sum_l mean_hw sum_c w_lc (f_lc(a) / |f_l(a)| - f_lc(b) / |f_l(b)|)^2

with f_l the maps of layer l of AlexNet or VGG16, normalised over channels at each pixel, and
learned weights w >= 0. These weights come with torchmetrics. The network's, torchvision's
published ones for ImageNet, come with no package: they are a file, or lie in a cache. torchmetrics
builds and downloads its networks through torchvision and takes no file, so the layers stand here.

References:
    Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018
    (https://arxiv.org/abs/1801.03924), version 0.1 of the weights.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tdquant.errors import DataError
from tdquant.files.digests import file_digest, hash_tensors
from tdquant.lab.metrics.paired import clamped
from tdquant.lab.metrics.weights import find_weights, loading, published_digest, read_state
from tdquant.support.optional import require

URL = "https://download.pytorch.org/models/"
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_CHUNK = 16


class Backbone(NamedTuple):
    """A network without its classifier.

    Attributes:
        file: Name of torchvision's file of weights.
        layers: Convolutions as (output channels, kernel, stride, padding), each followed by a
            ReLU; max pooling as (kernel, stride).
        taps: Which convolutions are compared, after their ReLU, counted from 0.
        side: Pixels of the smallest image that reaches the last of them.
    """

    file: str
    layers: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]
    side: int


def _vgg(*stages: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Stages of (convolutions, channels) with max pooling between them."""
    layers: list[tuple[int, ...]] = []
    for count, channels in stages:
        layers += [*[(channels, 3, 1, 1)] * count, (2, 2)]
    return tuple(layers[:-1])


BACKBONES = {
    "alex": Backbone(
        "alexnet-owt-7be5be79.pth",
        (
            (64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), (384, 3, 1, 1), (256, 3, 1, 1),
            (256, 3, 1, 1),
        ),
        (0, 1, 2, 3, 4),
        31,
    ),
    "vgg": Backbone(
        "vgg16-397923af.pth",
        _vgg((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
        (1, 3, 6, 9, 12),
        16,
    ),
}  # fmt: skip
"""The networks that LPIPS has weights for, with torchvision's numbers of their layers."""


class Lpips(nn.Module):
    """``images (N, C, H, W), images (N, C, H, W) in [-1, 1] -> distances (N,)``, 0 for equal ones.

    A paired metric with the signature of those of ``PAIRED``.

    Arguments:
        weights: The backbone's state dict, torchvision's file ``alexnet-owt-7be5be79.pth`` or
            ``vgg16-397923af.pth``. None searches ``$TDQUANT_CACHE`` (``~/.cache/tdquant``) and
            the cache of ``torch.hub``. With other weights than the published ones, ``standard``
            is False and ``title`` has their digest.
        backbone: "alex", which most papers report, or "vgg".

    Raises:
        DataError: The backbone is unknown, or its weights are missing or another network's.
        MissingDependencyError: The extra ``metrics`` is not installed.
    """

    name = "lpips"
    title = "LPIPS"
    better = "lower"
    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path | None = None, backbone: str = "alex") -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise DataError(
                f"no backbone {backbone!r}", where="Lpips", fix=f"one of {', '.join(BACKBONES)}"
            )
        self.backbone = BACKBONES[backbone]
        self.features = _features(self.backbone)
        if weights is None:
            weights = find_weights([self.backbone.file], URL + self.backbone.file)
        file = Path(weights)
        state = {
            name.removeprefix("features."): value
            for name, value in read_state(file).items()
            if not name.startswith("classifier.")
        }
        with loading(file):
            self.features.load_state_dict(state)
        code = require("torchmetrics.functional.image.lpips", "metrics")
        heads = read_state(Path(str(code.__file__)).parent / "lpips_models" / f"{backbone}.pth")
        self.heads = nn.ParameterList(
            heads[f"lin{i}.model.1.weight"].flatten() for i in range(len(self.backbone.taps))
        )
        self.register_buffer("shift", torch.tensor(SHIFT, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE, dtype=torch.float32).view(3, 1, 1))
        self.eval().requires_grad_(False)
        self.standard = file_digest(file).startswith(published_digest(self.backbone.file))
        if not self.standard:
            self.title = f"LPIPS (weights {self.digest[:8]})"

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of names, types, shapes and bytes of all weights:
        distances of two digests are not comparable.
        """
        return hash_tensors(self.state_dict()).hexdigest()[:16]

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = clamped(a, b)
        if a.ndim != 4 or a.shape[1] not in (1, 3) or min(a.shape[2:]) < self.backbone.side:
            raise DataError(
                f"images of shape {tuple(a.shape)}",
                where="Lpips",
                fix=f"(N, 3, H, W) or grey (N, 1, H, W) of {self.backbone.side} pixels or more",
            )
        a, b = a.to(self.shift.device), b.to(self.shift.device)
        pairs = zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)
        return torch.cat([self._distances(x, y) for x, y in pairs])

    def _distances(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), device=a.device, dtype=torch.float32)
        for head, f, g in zip(self.heads, self._maps(a), self._maps(b), strict=True):
            total += (_unit(f) - _unit(g)).square().mul(head[:, None, None]).sum(1).mean((1, 2))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return [found[i] for i in self.backbone.taps]


def _features(backbone: Backbone) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for spec in backbone.layers:
        if len(spec) == 2:
            layers.append(nn.MaxPool2d(*spec))
        else:
            outward, kernel, stride, padding = spec
            layers += [nn.Conv2d(channels, outward, kernel, stride, padding), nn.ReLU()]
            channels = outward
    return nn.Sequential(*layers).float()


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
