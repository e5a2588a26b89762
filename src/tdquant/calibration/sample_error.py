"""The error of a whole model, by which choices for all of it are compared."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LEAST = 1e-20
"""Squared error at and below which results count as equal."""


def sample_error(results: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Returns the geometric mean over samples of their mean squared errors: the error of a sample
    that tips over into another image is a hundred times that of the rest, and a few such samples
    would decide by chance.

    Arguments:
        results: Samples or outputs of a model, ``(B, *)`` each.
        exact: Those of the float model.
    """
    pairs = zip(results, exact, strict=True)
    errors = [(y.float() - e.float()).square().flatten(1).mean(1) for y, e in pairs]
    return float(torch.cat(errors).clamp(min=LEAST).log().mean().exp())
