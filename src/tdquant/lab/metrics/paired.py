r"""Paired metrics: samples of two models from the same noise, image by image.

    MSE = mean (a - b)^2,    PSNR = 10 log10(4 / MSE)

on images in [-1, 1], whose range of 2 gives the 4. SSIM is torchmetrics'; its MSE and PSNR would
be longer calls than these formulas. Values outside the range are clamped, as in a saved image.

References:
    Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tdquant.errors import DataError
from tdquant.support.optional import require


def clamped(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches in float32, clamped to [-1, 1].

    Raises:
        DataError: Their shapes differ, or there are no images.
    """
    if a.shape != b.shape or a.ndim < 2 or not len(a):
        raise DataError(
            f"images of shapes {tuple(a.shape)} and {tuple(b.shape)}",
            where="paired metrics",
            why="they compare image i of one with image i of the other",
        )
    return a.float().clamp(-1, 1), b.float().clamp(-1, 1)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair of images ``(N, *)`` in [-1, 1], shape ``(N,)``."""
    a, b = clamped(a, b)
    return (a - b).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, ``(N,)``; infinite for equal images."""
    return 10 * torch.log10(4 / mse(a, b))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of images ``(N, C, H, W)``, at most 1, ``(N,)``."""
    a, b = clamped(a, b)
    image = require("torchmetrics.functional.image", "metrics")
    value = image.structural_similarity_index_measure(
        a, b, data_range=(-1.0, 1.0), reduction="none"
    )
    return value.reshape(-1)


PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "psnr": psnr, "ssim": ssim}
"""Every paired metric without weights: two batches of images to one value a pair. ``Lpips``, which
has weights, has the same signature."""


def paired(a: Tensor, b: Tensor) -> dict[str, float]:
    """The mean over pairs of every paired metric."""
    return {name: float(metric(a, b).mean()) for name, metric in PAIRED.items()}
