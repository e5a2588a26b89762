r"""Inception Score: are images recognisable, and of many classes?

    IS = exp( mean_i sum_c p_ic (log p_ic - log q_c) ),    q_c = mean_i p_ic

with p the class probabilities of image i; the mean over 10 parts of the shuffled images. It needs
no reference set, and says nothing about images unlike the network's classes.

References:
    Salimans et al., Improved Techniques for Training GANs, 2016
    (https://arxiv.org/abs/1606.03498).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdquant.lab.metrics.bootstrap import membership

PARTS = 10


def inception_score(logits: Tensor, seed: int, parts: int = PARTS) -> float:
    """The mean score of the parts of logits ``(N, C)``, 1 to the number of classes."""
    every = torch.arange(len(logits))[None]
    return float(resampled_inception_score(logits, every, seed, parts))


def resampled_inception_score(
    logits: Tensor, kept: Tensor, seed: int, parts: int = PARTS
) -> Tensor:
    """The score of each of R subsets of the images, by their indices ``(R, K)``: ``(R,)``.

    Each image stays in its part: parts made anew for each subset would add the chance of the
    shuffle to that of the images.
    """
    # torchmetrics shuffles by torch's global random state and takes no subsets; with
    # torch-fidelity's parts, equal seeds give equal values.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(logits)))
    log_p = logits.cpu()[order].double().log_softmax(1)
    p = log_p.exp()
    entropy = (p * log_p).sum(1)
    weights, scores = membership(kept, len(p))[:, order], []
    for i in range(parts):
        rows = slice(i * len(p) // parts, (i + 1) * len(p) // parts)
        share = weights[:, rows]
        share = share / share.sum(1, keepdim=True).clamp_min(1)  # a part may be left out whole
        q = share @ p[rows]
        scores.append((share @ entropy[rows] - torch.special.xlogy(q, q).sum(1)).exp())
    return torch.stack(scores).mean(0)
