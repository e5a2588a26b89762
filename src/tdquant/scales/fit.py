r"""Fitting temporal scales to chosen curves: log-scale regression, all layers in one batch.

    min over the networks  sum_l mean_t w_l(t) (log s_l(t) - log s*_l(t))^2

over all training timesteps, with s* linear in log-scale between the times that were seen: the
features of high frequency would otherwise be free to do anything between them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.numerics.fake_quantize import FLOOR

if TYPE_CHECKING:  # which starts its scales by this
    from tdquant.scales.temporal import TemporalScale


def fit(
    scales: list[TemporalScale],
    times: Tensor,
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
        scales: L scales of one architecture and time range.
        times: K times.
        curves: Target steps s*, ``(L, K)``, positive.
        weights: How much each time matters to each layer, ``(L, K)``; even if None.
        iterations: Steps of Adam.
        batch: Times a step.
        rate: First learning rate; it falls to zero along a half cosine.
        seed: Seed of the draws.

    Returns:
        Largest ``|log s - log s*|`` of each layer, ``(L,)``.
    """
    if not scales:
        return torch.zeros(0)
    target = curves.detach().float().log()
    weights = (
        torch.ones_like(target) if weights is None else weights / weights.mean(1, keepdim=True)
    )
    features = scales[0].encode(times.cpu()).cpu()
    for scale, goal in zip(scales, target, strict=True):
        scale.reset(math.exp(float(goal.mean())))
    layers = [scale.layers for scale in scales]
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
        h = x.expand(len(scales), *x.shape)
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
            index = torch.randint(len(times), (min(batch, len(times)),), generator=rng)
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
