r"""Gaussians fitted to feature sets, and the Frechet distance between two of them.

    d^2 = |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_2^(1/2) C_1 C_2^(1/2))^(1/2)

The last trace is the sum of the square roots of the eigenvalues of a symmetric matrix, so nothing
is complex, singular covariances need no care, and the root of the reference is taken once.
torchmetrics' FID needs the images of both sets and an eigensolver for general matrices: it takes
no statistics of a reference set, and no subsets.

References:
    Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982.
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium, 2017 (https://arxiv.org/abs/1706.08500).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tdquant.errors import DataError
from tdquant.lab.metrics.bootstrap import membership

ROUNDING = 1e-3
"""Share of the largest covariance that rounding to float32, or half precision, leaves."""

NO_STATISTICS = "no feature statistics"
_FORM = (
    "a .safetensors with mean (D,), the lower half of the covariance (D (D + 1) / 2,) and count, "
    "as Statistics.to_bytes writes it, or an .npz with mu (D,) and sigma (D, D)"
)


@dataclass(frozen=True)
class Statistics:
    """Mean ``(D,)``, covariance ``(D, D)`` and number of images of a set's features, float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Statistics of features ``(N, D)``.

        Raises:
            DataError: Fewer than two images.
        """
        if len(features) < 2:
            raise DataError(
                f"{len(features)} images",
                where="Frechet distance",
                why="one image has no covariance",
                fix="at least 2; hundreds to mean much",
            )
        rows = features.double().cpu()
        mean = rows.mean(0)
        rows = rows - mean
        return cls(mean, rows.T @ rows / (len(rows) - 1), len(rows))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, ``(D, D)``."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def to_bytes(self) -> bytes:
        """A float32 safetensors file with the lower half of the symmetric covariance."""
        lower = torch.tril_indices(*self.covariance.shape)
        half = self.covariance[lower[0], lower[1]].float()
        return save(
            {"mean": self.mean.float(), "covariance": half, "count": torch.tensor(self.count)}
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "") -> Statistics:
        """Reads what ``to_bytes`` wrote.

        Arguments:
            data: Content of the file.
            where: Its path, for errors.

        Raises:
            DataError: It is something else, or its numbers are not finite.
        """
        try:
            tensors = load(data)
        except (SafetensorError, ValueError) as error:
            raise DataError(NO_STATISTICS, where=where, why=str(error), fix=_FORM) from error
        names = ("mean", "covariance", "count")
        missing = [name for name in names if name not in tensors]
        if missing:
            why = f"no {', '.join(missing)} in it"
            raise DataError(NO_STATISTICS, where=where, why=why, fix=_FORM)
        mean, half, count = (tensors[name] for name in names)
        width = len(mean) if mean.ndim == 1 else 0
        if mean.ndim != 1 or half.shape != (width * (width + 1) // 2,) or count.numel() != 1:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in sorted(tensors.items()))
            raise DataError(NO_STATISTICS, where=where, why=f"the shapes are {shapes}", fix=_FORM)
        if not count.double().isfinite().all():
            raise DataError("count is not finite", where=where, fix=_FORM)
        covariance = torch.zeros(width, width, dtype=torch.float64)
        lower = torch.tril_indices(width, width)
        covariance[lower[0], lower[1]] = half.double()
        covariance = covariance + covariance.tril(-1).T
        return cls(mean.double(), covariance, int(count)).checked(where, _FORM)

    def checked(self, where: str, form: str) -> Statistics:
        """Returns itself if it holds valid statistics; called on what a file gave.

        Arguments:
            where: The file.
            form: Content of a valid file.

        Raises:
            DataError: The shapes do not fit, a number is not finite, the covariance is not one
                (symmetric, of no negative variance), or the image count is negative.
        """
        mean, covariance = tuple(self.mean.shape), tuple(self.covariance.shape)
        if len(mean) != 1 or covariance != mean * 2:
            raise DataError(
                f"mean of shape {mean} and covariance of shape {covariance}", where=where, fix=form
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise DataError(
                "mean or covariance is not finite", where=where, fix="compute the statistics again"
            )
        covariances = self.covariance
        largest = float(covariances.abs().max())
        least = float(torch.linalg.eigvalsh(covariances).min())
        skew = float((covariances - covariances.T).abs().max())
        if max(skew, -least) > ROUNDING * largest:
            raise DataError(
                "the covariance is none",
                where=where,
                why=f"it has a variance of {least:.3g}, and differs from its transpose by "
                f"{skew:.3g}; its largest number is {largest:.3g}",
                fix="compute the statistics again, in float64",
            )
        if self.count < 0:
            raise DataError(f"statistics of {self.count} images", where=where, fix=form)
        return self


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared distance d^2 of two sets, known as FID; never negative.

    Arguments:
        a: Statistics of one set.
        b: Those of the other; its root is cached, so pass the reference here.

    Raises:
        DataError: Their features differ in width.
    """
    _check_widths(a.mean, b)
    product = b.root @ a.covariance @ b.root
    mixed = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max(float(distance - 2 * mixed), 0.0)


def resampled_frechet(features: Tensor, reference: Statistics, kept: Tensor) -> Tensor:
    r"""The distance of each of R subsets of the images, by their indices ``(R, K)``: ``(R,)``.

    With `Y = (X - mean X) C_2^(1/2)`, the matrix under the root is the covariance of the kept rows
    of Y: `Y^T Y` minus the product of the few rows that are left out, in float32. With fewer
    images than features, the same eigenvalues come from the smaller Gram matrix.
    """
    x = features.double().cpu()
    _check_widths(x[0], reference)
    k, centre = kept.shape[1], x.mean(0)
    x = x - centre
    y = x @ reference.root
    lengths = x.square().sum(1)
    few = k < y.shape[1]
    products, rows, found = (y @ y.T if few else y.T @ y).float(), y.float(), []
    for weights in membership(kept, len(x)):
        shift = weights @ x / k
        spread = (weights @ lengths - k * shift.square().sum()) / (k - 1)
        if few:
            matrix = _centred(products[weights == 1][:, weights == 1])
        else:
            out = rows[weights == 0]  # the rows of Y add to zero
            total = -out.sum(0)
            matrix = products - out.T @ out - torch.outer(total, total) / k
        mixed = _eigenvalues(matrix / (k - 1)).clamp_min(0).sqrt()
        mean = (centre + shift - reference.mean).square().sum()
        trace = spread + reference.covariance.trace()
        found.append(mean + trace - 2 * mixed.sum(dtype=torch.float64))
    return torch.stack(found)


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, in its precision if LAPACK can."""
    try:
        return torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError:  # some nearly singular ones do not converge in float32
        return torch.linalg.eigvalsh(matrix.double())


def _centred(gram: Tensor) -> Tensor:
    """The Gram matrix of rows from that of the same rows before their mean is subtracted."""
    means = gram.mean(1)
    return gram - means - means[:, None] + means.mean()


def _check_widths(mean: Tensor, reference: Statistics) -> None:
    if mean.shape != reference.mean.shape:
        raise DataError(
            f"{len(mean)} features an image, and {len(reference.mean)} of the reference",
            where="Frechet distance",
            why="features of two networks have no distance",
            fix="statistics of the reference set by the same network",
        )
