r"""Fitting temporal scales to chosen curves: log-scale regression, all layers in one batch.

    min over the networks  sum_l mean_t w_l(t) (log s_l(t) - log s*_l(t))^2

over all training timesteps, with s* linear in log-scale between the times that were seen: the
features of high frequency would otherwise be free to do anything between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.numerics.fake_quantize import FLOOR


def fit(
    layers: Sequence[Sequence[nn.Linear]],
    features: Tensor,
    curves: Tensor,
    weights: Tensor | None = None,
    *,
    iterations: int = 300,
    batch: int = 64,
    rate: float = 6e-3,
    seed: int = 0,
) -> Tensor:
    """Trains the networks of temporal scales towards ``curves``.

    Arguments:
        layers: Linear layers of L networks of one architecture, which start near the mean of their
            curves.
        features: Encoding of K times, ``(K, d)``.
        curves: Target steps s*, ``(L, K)``, positive.
        weights: Weight of each time for each network, ``(L, K)``; uniform if None.
        iterations: Optimizer steps of Adam.
        batch: Times of an optimizer step.
        rate: First learning rate; it falls to zero along a half cosine.
        seed: Seed of the draws.

    Returns:
        Largest ``|log s - log s*|`` of each layer, ``(L,)``.
    """
    target = curves.detach().float().log()
    weights = (
        torch.ones_like(target) if weights is None else weights / weights.mean(1, keepdim=True)
    )
    depth = len(layers[0])
    weight = [
        torch.stack([ls[i].weight.detach().cpu() for ls in layers]).requires_grad_()
        for i in range(depth)
    ]
    bias = [
        torch.stack([ls[i].bias.detach().cpu() for ls in layers]).unsqueeze(1).requires_grad_()
        for i in range(depth)
    ]

    def log_scale(x: Tensor) -> Tensor:
        h = x.expand(len(layers), *x.shape)
        for i, (w, b) in enumerate(zip(weight, bias, strict=True)):
            h = torch.baddbmm(b, h, w.transpose(1, 2))
            if i + 1 < depth:
                h = h.relu()
        return (F.softplus(h.squeeze(-1)) + FLOOR).log()

    optimizer = torch.optim.Adam([*weight, *bias], lr=rate, fused=True)
    rng = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for iteration in range(iterations):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
            index = torch.randint(len(features), (min(batch, len(features)),), generator=rng)
            loss = (
                (log_scale(features[index]) - target[:, index])
                .square()
                .mul(weights[:, index])
                .sum()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        for j, ls in enumerate(layers):
            for i, layer in enumerate(ls):
                layer.weight.copy_(weight[i][j])
                layer.bias.copy_(bias[i][j, 0])
        return (log_scale(features) - target).abs().amax(1)
