r"""Weights of times in errors that are added over time.

    w(t) = 1 / sqrt(e_0(t))

with e_0 the mean squared error of a baseline, over samples near t: rounding to nearest while a
block learns, static scales while scales are chosen. A denoiser errs a hundred times more near the
image than in the noise, where it is decided which image it becomes: in plain means the last few
steps alone would count. The root lies between plain means and equal shares of all times.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 16
LEAST = 1e-6
"""Least e_0 of a bin, as a share of the mean: nothing is learned without error."""


class TimeBins:
    """Times in at most 16 bins, with about as many of the occurring times in each.

    Arguments:
        times: All times that occur, of every process, ``(N,)``.
    """

    def __init__(self, times: Tensor) -> None:
        known = times.detach().double().cpu().unique()
        bins = min(BINS, len(known))
        places = torch.linspace(0, len(known), bins + 1, dtype=torch.float32)[1:-1].ceil().long()
        self.edges = known[places]
        self.weights = torch.ones(len(self.edges) + 1, dtype=torch.float64)

    def find(self, times: Tensor) -> Tensor:
        """The bin of each time ``(B,)``."""
        return torch.bucketize(times.detach().double().cpu(), self.edges, right=True)

    def sums(self, times: Tensor, errors: Tensor) -> Tensor:
        """Sum of the errors and number of samples in each bin, ``(2, bins)``."""
        ones = torch.ones(len(errors), dtype=torch.float64)
        both = torch.stack([errors.detach().double().cpu(), ones])
        total = torch.zeros(2, len(self.weights), dtype=torch.float64)
        return total.index_add_(1, self.find(times), both)

    def balance(self, sums: Tensor) -> None:
        """Weights the bins by their mean errors in ``sums``, whose own ``error`` is then 1."""
        mean = sums[0].sum() / sums[1].sum().clamp(min=1)
        each = sums[0] / sums[1].clamp(min=1)
        self.weights = each.clamp(min=max(float(mean) * LEAST, 1e-20)).rsqrt()
        self.weights /= self.error(sums) or 1.0

    def error(self, sums: Tensor) -> float:
        """Weighted mean error: 1 for the sums that ``balance`` was given."""
        return float((sums[0] * self.weights).sum() / sums[1].sum().clamp(min=1))

    def weight(self, times: Tensor) -> Tensor:
        """The weight of each time ``(B,)``, float32 on its device."""
        return self.weights[self.find(times)].to(times.device, torch.float32)
