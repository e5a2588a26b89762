r"""Kernel distance of feature sets (KID): the squared maximum mean discrepancy, unbiased.

    k(x, y) = (x . y / D + 1)^3
    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
            - 2 sum_{i, j} k(x_i, y_j) / m^2

averaged over 100 pairs of subsets of m = 1000 images, drawn without replacement. Unlike a Frechet
distance its expectation does not depend on the number of images; it can be slightly negative.

References:
    Binkowski et al., Demystifying MMD GANs, 2018 (https://arxiv.org/abs/1801.01401). The
    subsets are torch-fidelity's: equal seeds, equal numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tdquant.lab.metrics.bootstrap import counts

SUBSETS = 100
SUBSET_SIZE = 1000
_WHOLE = 32_000_000  # entries of one kernel matrix, float64, that may be held at once
_ROWS = 1024

Block = Callable[[Tensor, Tensor], Tensor]


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """``k(x_i, y_j)``, ``(N, M)``, of features ``(N, D)`` and ``(M, D)``, float64."""
    return torch.addmm(torch.ones((), dtype=torch.float64), x, y.T, alpha=1 / x.shape[1]).pow_(3)


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    seed: int,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> float:
    """The mean distance of pairs of subsets.

    Sets smaller than ``size`` give smaller subsets, with a warning: the distance stays unbiased
    and its scatter grows.

    Arguments:
        features: Features of the images ``(N, D)``.
        reference: Features of the reference set ``(M, D)``.
        seed: Seed of the subsets.
        subsets: How many pairs.
        size: Images in a subset, m.
    """
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
    k_xx, k_yy, k_xy = (_blocks(*pair, subsets * size**2) for pair in ((x, x), (y, y), (x, y)))
    rng, total = np.random.RandomState(seed), 0.0
    for _ in range(subsets):
        i, j = (torch.from_numpy(rng.choice(count, size, replace=False)) for count in (n, m))
        total += _unpaired_mean(k_xx(i, i)) + _unpaired_mean(k_yy(j, j))
        total -= 2 * float(k_xy(i, j).mean())
    return total / subsets


def resampled_kernel_distance(features: Tensor, reference: Tensor, drawn: Tensor) -> Tensor:
    """The distance, over all images at once, of each of R selections of images, ``(R,)``.

    An image that a selection has twice is not compared with itself, so it is not biased.

    Arguments:
        features: Features of the images ``(N, D)``.
        reference: Features of the reference set ``(M, D)``.
        drawn: Indices of images, ``(R, K)``.
    """
    x, y = features.double().cpu(), reference.double().cpu()
    weights = counts(drawn, len(x))
    within = torch.zeros(len(weights), dtype=torch.float64)
    across = torch.zeros(len(x), dtype=torch.float64)
    own = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(x)).split(_ROWS):
        block = kernel(x[rows], x)
        block[torch.arange(len(rows)), rows] = 0
        within += (weights[:, rows] @ block * weights).sum(1)
        across[rows] = kernel(x[rows], y).mean(1)
    for rows in torch.arange(len(y)).split(_ROWS):
        block = kernel(y[rows], y)
        block[torch.arange(len(rows)), rows] = 0
        own += block.sum()
    k, m = drawn.shape[1], len(y)
    pairs = k**2 - weights.square().sum(1)
    return within / pairs + own / (m * (m - 1)) - 2 * (weights @ across) / k


def _unpaired_mean(block: Tensor) -> float:
    m = len(block)
    return float(block.sum() - block.diagonal().sum()) / (m * (m - 1))


def _blocks(x: Tensor, y: Tensor, used: int) -> Block:
    """``(i, j) -> k(x_i, y_j)``: from the whole matrix where that is less work than its parts."""
    if len(x) * len(y) <= min(used, _WHOLE):
        whole = kernel(x, y)
        return lambda i, j: whole[i[:, None], j]
    return lambda i, j: kernel(x[i], y[j])
