r"""Precision and recall of generated images, by manifolds of nearest neighbours.

The manifold of a set is the union of balls around its features. The radius of a ball is the
distance to the k-th nearest other feature, k = 3.

    precision = share of generated images inside the manifold of the reference set: quality
    recall    = share of reference images inside the manifold of the generated set: variety

Both depend on the size of the two sets.

References:
    Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019
    (https://arxiv.org/abs/1904.06991).
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3
_ROWS = 1024
_KNOWN = 40  # nearest neighbours kept for subsets: that 38 of 40 are left out never happens


def precision(features: Tensor, reference: Tensor) -> float:
    """Share of images ``(N, D)`` inside the manifold of the reference set ``(M, D)``."""
    return float(covered(features, reference).double().mean())


def recall(features: Tensor, reference: Tensor) -> float:
    """Share of the reference set ``(M, D)`` inside the manifold of the images ``(N, D)``."""
    return float(covered(reference, features).double().mean())


def covered(points: Tensor, centres: Tensor) -> Tensor:
    """Whether each point ``(N, D)`` lies in the manifold of ``centres (M, D)``: bool ``(N,)``."""
    points, centres = points.double().cpu(), centres.double().cpu()
    radii = nearest(centres, NEIGHBOURS)[0][:, -1]
    rows = points.split(_ROWS)
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in rows])


def nearest(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of the ``count`` nearest other images, ``(N, count)``, ascending."""
    distances, indices = [], []
    for rows in torch.arange(len(features)).split(_ROWS):
        part = torch.cdist(features[rows], features)
        part[torch.arange(len(rows)), rows] = torch.inf
        found = part.topk(count, largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def resampled_precision(features: Tensor, reference: Tensor, kept: Tensor) -> Tensor:
    """Precision of each of R subsets of the images ``(R, K)``, ``(R,)``."""
    return covered(features, reference).double()[kept].mean(1)


def resampled_recall(features: Tensor, reference: Tensor, kept: Tensor) -> Tensor:
    """Recall of each of R subsets of the images ``(R, K)``, different ones, ``(R,)``."""
    features, reference = features.double().cpu(), reference.double().cpu()
    distances, others = nearest(features, min(_KNOWN, len(features) - 1))
    # In parts: the whole in float64 would be three times what is kept of it.
    parts = [torch.cdist(part, features).float() for part in reference.split(_ROWS)]
    across, found = torch.cat(parts), []
    for row in kept:
        present = torch.zeros(len(features), dtype=torch.bool)
        present[row] = True
        ranks = present[others[row]].cumsum(1)
        last = torch.full_like(ranks[:, :1], ranks.shape[1] - 1)
        reached = torch.searchsorted(ranks, torch.full_like(last, NEIGHBOURS))
        radii = distances[row].gather(1, reached.minimum(last)).squeeze(1)
        found.append((across[:, row] <= radii.float()).any(1).double().mean())
    return torch.stack(found)
