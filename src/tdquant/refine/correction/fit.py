r"""The correction that moments of predictions ask for.

With y the float model's prediction and z the quantized one's for the same input, over all samples
at timestep t:

    energy    g = <y, y> / max(<z, y>, min(<z, z>, <y, y>))
    least     g = <z, y> / <z, z>
    none      g = 1
    bias      b_c = mean(y_c) - g mean(z_c)         for each channel c

With a bias, gains are those of y and z less the means of their channels.

*Least* has the least squared error of one call. It multiplies by less than 1 where z holds noise
of its own: what is lost of y by that is missing in every step, and adds up in a sample.

*Energy* leaves no noise behind in a sample. Let z = (1 + k) y + d, E[d y] = 0. Near the image, x
holds little noise, coarse codes lose some of it, and a model trained to the least squared error
then predicts less, as it should for that error: k is negative. But noise that is not predicted is
not removed; it stays in the sample, and in the next input in addition to the noise of the
timestep. For such a model <z, z> <= <z, y>, and g = 1 / (1 + k) makes the prediction unbiased. Its
squared error is a little larger, the samples' distance to the data smaller. Rounding that no
training has seen adds as much as it takes: where z has the energy of y in spite of k, multiplying
would multiply what was added, and the gain is 1.

Estimates are shrunk by their standard errors between the samples at a time (the positive part of
James and Stein's rule):

    v <- v max(0, 1 - se(v)^2 / v^2)         for v = log g and every b_c

so that what a few calls show by chance corrects nothing, and one sample nothing at all.

References:
    He et al., PTQD: Accurate Post-Training Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2305.10657).
    James and Stein, Estimation with Quadratic Loss, 1961.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdquant.refine.correction.moments import Moments

GAINS = ("energy", "least", "none")
LIMIT = 2.0
"""Largest gain, and one over the least. Where less than half of the prediction is left, more than
a gain is wrong, and near the image the rest of the noise matters little.
"""
KNOTS = 256
"""Most knots; with more times in the calls, neighbours are pooled."""
FEWEST = 4
"""Rows at a knot, on average: with fewer, neighbours are pooled. Standard errors need several."""
_TINY = 1e-300


@dataclass(frozen=True)
class Tables:
    """A correction as tables.

    Attributes:
        knots: Times ``(K,)``.
        gains: g at them ``(K,)``.
        biases: b at them ``(K, C)``, or None.
    """

    knots: Tensor
    gains: Tensor
    biases: Tensor | None = None

    def facts(self) -> dict[str, Any]:
        """Its least and largest gain, and its largest bias, JSON-safe."""
        found: dict[str, Any] = {"gain": [float(self.gains.min()), float(self.gains.max())]}
        if self.biases is not None:
            found["bias"] = float(self.biases.abs().max())
        return found

    def errors(self, moments: Moments) -> Tensor:
        """Mean squared error of each row's prediction, corrected, ``(R,)``. Gains and biases are
        those of the nearest knot.
        """
        nearest = (moments.times[:, None] - self.knots).abs().argmin(1)
        n, z, y, zz, zy, yy = moments.sums.unbind(2)
        g = self.gains[nearest][:, None]
        b = torch.zeros((), dtype=torch.float32) if self.biases is None else self.biases[nearest]
        squares = g * g * zz + yy + n * b * b - 2 * g * zy + 2 * b * (g * z - y)
        return squares.sum(1).clamp(min=0) / n.sum(1)


def solve(moments: Moments, gain: str, bias: bool) -> Tables:
    """Fits a correction.

    Arguments:
        moments: What was collected.
        gain: One of GAINS.
        bias: Whether to fit a bias.
    """
    known, place = moments.times.unique(return_inverse=True)
    groups = max(1, min(len(known), KNOTS, len(place) // FEWEST))
    place = place * groups // len(known)
    count = _grouped(torch.ones_like(moments.times), place, groups)
    knots = _grouped(moments.times, place, groups) / count
    rows = moments.sums
    own = _centered(rows, place, groups) if bias else rows
    numerators, denominators = _ratio(gain, own[..., 3:].sum(1), place, groups)
    gains = _shrunk_ratio(numerators, denominators, place, count)
    if not bias:
        return Tables(knots, gains)
    left = rows[..., 2] - gains[place][:, None] * rows[..., 1]
    n = _grouped(rows[..., 0], place, groups)
    biases = _grouped(left, place, groups) / n
    scatter = _grouped((left - biases[place] * rows[..., 0]).square(), place, groups)
    variance = scatter / n.square() * _unbiasing(count)[:, None]
    return Tables(knots, gains, _shrunk(biases, variance))


def _grouped(values: Tensor, place: Tensor, groups: int) -> Tensor:
    """Sums over the rows of every knot."""
    zeros = torch.zeros(groups, *values.shape[1:], dtype=torch.float64)
    return zeros.index_add_(0, place, values.double())


def _centered(rows: Tensor, place: Tensor, groups: int) -> Tensor:
    """Sums of z and y less their means at the knot."""
    n, z, y, zz, zy, yy = rows.unbind(2)
    total = _grouped(rows, place, groups)
    mz, my = ((total[..., i] / total[..., 0])[place] for i in (1, 2))
    zz = zz - 2 * mz * z + n * mz * mz
    zy = zy - mz * y - my * z + n * mz * my
    yy = yy - 2 * my * y + n * my * my
    return torch.stack([n, z, y, zz, zy, yy], dim=2)


def _ratio(gain: str, products: Tensor, place: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of g for every row: g is the ratio of their sums.

    Arguments:
        gain: One of GAINS.
        products: z z, z y and y y of the rows ``(R, 3)``.
    """
    zz, zy, yy = products.unbind(1)
    if gain == "none":
        return yy, yy
    if gain == "least":
        return zy, zz
    sums = _grouped(products, place, groups)
    of_noise = sums[:, 0].minimum(sums[:, 2])
    unbiased, quiet = sums[:, 1] > of_noise, sums[:, 0] < sums[:, 2]
    kept = torch.where(quiet[place], zz, yy)
    return yy, torch.where(unbiased[place], zy, kept)


def _shrunk_ratio(top: Tensor, bottom: Tensor, place: Tensor, count: Tensor) -> Tensor:
    """The ratio of sums at every knot, shrunk towards 1 by the standard error of its logarithm."""
    groups = len(count)
    tops, bottoms = _grouped(top, place, groups), _grouped(bottom, place, groups)
    empty = (tops <= _TINY) & (bottoms <= _TINY)  # predictions of zeros
    ratio = torch.where(empty, 1.0, tops.clamp(min=_TINY) / bottoms.clamp(min=_TINY))
    left = top - ratio[place] * bottom
    scatter = _grouped(left.square(), place, groups)
    variance = scatter / tops.clamp(min=_TINY).square() * _unbiasing(count)
    return _shrunk(ratio.log(), variance).exp().clamp(1 / LIMIT, LIMIT)


def _unbiasing(count: Tensor) -> Tensor:
    """``m / (m - 1)`` for m rows, by which the mean square of residuals is too small; infinite for
    one.
    """
    return count / (count - 1).clamp(min=0)


def _shrunk(value: Tensor, variance: Tensor) -> Tensor:
    """``v max(0, 1 - variance / v^2)``."""
    kept = 1 - variance / value.square()
    return torch.where(kept > 0, value * kept, 0.0)  # NaN, of 0 / 0, is not
