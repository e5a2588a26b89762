"""The error of a whole model, by which choices for all of it are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

LEAST = 1e-20
"""Squared error at and below which results count as equal."""


def sample_error(results: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Returns the interquartile geometric mean of the samples' mean squared errors: the largest
    and the smallest quarter of each batch are left out.

    A sample that turns into another image has hundreds of times the error of the others. In the
    geometric mean of sixteen samples it would count for a factor of 1.4, and a few such samples
    would decide by chance. Batches are calls at different times, or one of all samples.

    Arguments:
        results: Samples or outputs of a model, ``(B, *)`` each.
        exact: Those of the float model.

    Returns:
        The error; NaN if a single sample is not finite.
    """
    total, count = 0.0, 0
    for y, e in zip(results, exact, strict=True):
        errors = (y.float() - e.float()).square().flatten(1).mean(1)
        if not errors.isfinite().all():
            return math.nan
        logarithms = errors.clamp(min=LEAST).log().sort().values
        outer = len(errors) // 4
        total += len(errors) * float(logarithms[outer : len(errors) - outer].mean())
        count += len(errors)
    return math.exp(total / count)
