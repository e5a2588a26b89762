r"""Kernel distance of feature sets (KID): the squared maximum mean discrepancy, unbiased.

    k(x, y) = (x . y / D + 1)^3
    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
            - 2 sum_{i, j} k(x_i, y_j) / m^2

averaged over 100 pairs of subsets of m = 1000 images, drawn without replacement. Unlike a Frechet
distance its expectation does not depend on the number of images; it can be slightly negative.

References:
    Binkowski et al., Demystifying MMD GANs, 2018 (https://arxiv.org/abs/1801.01401).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from tdquant.lab.metrics.bootstrap import membership
from tdquant.support.optional import require

SUBSETS = 100
SUBSET_SIZE = 1000
_ROWS = 1024


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    seed: int,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> float:
    """The mean distance of pairs of subsets of features ``(N, D)`` and ``(M, D)``.

    Sets smaller than ``size`` give smaller subsets, with a warning: the distance stays unbiased
    and its scatter grows.

    Raises:
        MissingDependencyError: The extra ``metrics`` is not installed.
    """
    poly_mmd = require("torchmetrics.image.kid", "metrics").poly_mmd
    x, y = features.double().cpu(), reference.double().cpu()
    n, m = len(x), len(y)
    smallest = min(n, m)
    if smallest < size:
        warnings.warn(
            f"kernel distance from subsets of {smallest} images, not {size}: there are {n} images "
            f"and {m} of the reference; its scatter is larger",
            stacklevel=2,
        )
        size = smallest
    # torchmetrics' own metric draws from torch's global random state; with torch-fidelity's
    # subsets, equal seeds give equal values.
    rng, total = np.random.RandomState(seed), 0.0
    for _ in range(subsets):
        i, j = (torch.from_numpy(rng.choice(count, size, replace=False)) for count in (n, m))
        total += float(poly_mmd(x[i], y[j]))
    return total / subsets


def resampled_kernel_distance(features: Tensor, reference: Tensor, kept: Tensor) -> Tensor:
    """The distance between each of R subsets of the images, by their indices ``(R, K)``, and the
    whole reference set: ``(R,)``.
    """
    kernel = require("torchmetrics.image.kid", "metrics").poly_kernel
    x, y = features.double().cpu(), reference.double().cpu()
    weights = membership(kept, len(x))
    within = torch.zeros(len(weights), dtype=torch.float64)
    across = torch.zeros(len(x), dtype=torch.float64)
    own = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(x)).split(_ROWS):  # the whole matrix may not fit into memory
        block = kernel(x[rows], x)
        block[torch.arange(len(rows)), rows] = 0
        within += (weights[:, rows] @ block * weights).sum(1)
        across[rows] = kernel(x[rows], y).mean(1)
    for rows in torch.arange(len(y)).split(_ROWS):
        block = kernel(y[rows], y)
        block[torch.arange(len(rows)), rows] = 0
        own += block.sum()
    k, m = kept.shape[1], len(y)
    return within / (k * (k - 1)) + own / (m * (m - 1)) - 2 * (weights @ across) / k
