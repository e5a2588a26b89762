"""Metrics of image sets by name: what each needs, its title, its value and its interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from tdquant.errors import DataError
from tdquant.lab.metrics.bootstrap import UNBOUNDED, Interval, interval, subsets
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.gaussians import Statistics, frechet_distance, resampled_frechet
from tdquant.lab.metrics.inception_score import PARTS, inception_score, resampled_inception_score
from tdquant.lab.metrics.kernel_distance import kernel_distance, resampled_kernel_distance
from tdquant.lab.metrics.precision_recall import (
    NEIGHBOURS,
    precision,
    recall,
    resampled_precision,
    resampled_recall,
)

Reference = Tensor | Statistics | None
SEED = 2020  # torch-fidelity's: equal seeds give equal subsets and parts


@dataclass(frozen=True)
class SetMetric:
    """A metric of a set of images, or of two.

    Attributes:
        name: Its key in ``SET_METRICS``.
        kind: The features it is computed from: "pooled", "logits" or "spatial".
        better: "lower" or "higher".
        reference: Whether it needs a reference set.
        minimum: Fewest images, in either set.
        common: Its title on the Inception network of the FID.
        general: Its title on another network, whose title replaces ``{}``.
        bounds: Smallest and largest value that it can have.
        measure: ``(features, reference, seed) -> value``.
        resample: ``(features, reference, subsets (R, K), seed) -> values (R,)``.
        summarized: Whether ``Statistics`` are enough as the reference.
    """

    name: str
    kind: str
    better: Literal["lower", "higher"]
    reference: bool
    minimum: int
    common: str
    general: str
    bounds: tuple[float, float]
    measure: Callable[[Tensor, Any, int], float]
    resample: Callable[[Tensor, Any, Tensor, int], Tensor]
    summarized: bool = False

    def title(self, network: FeatureNetwork) -> str:
        """Its title in tables: the common name only on the network that it belongs to."""
        return self.common if network.standard else self.general.format(network.title)

    def compute(self, features: Tensor, reference: Reference = None, *, seed: int = SEED) -> float:
        """The value.

        Arguments:
            features: Features of the images ``(N, D)``, of kind ``kind``.
            reference: Those of the reference set ``(M, D)``, or their ``Statistics``.
            seed: Seed of what is drawn: subsets of kid, parts of is.

        Raises:
            DataError: There are too few images, features that are not finite, or features of two
                networks; or the reference set is missing, or statistics where its features are
                needed. All mistakes are listed.
        """
        self._check(features, reference)
        return self.measure(features, reference, seed)

    def interval(
        self,
        features: Tensor,
        reference: Reference = None,
        *,
        seed: int = SEED,
        resamples: int = 100,
        level: float = 0.95,
    ) -> Interval:
        """The value with its interval over subsets of the images; the reference set stays whole.

        The module ``bootstrap`` has the formula. If subsets have fewer images than the metric
        needs, both ends are NaN.

        Arguments:
            features: As for ``compute``.
            reference: As for ``compute``.
            seed: Seed of the value and of the subsets.
            resamples: Number of subsets.
            level: Share of the subsets between the ends, in (0, 1).

        Raises:
            DataError: As for ``compute``; or there are fewer than two subsets, or the level is not
                in (0, 1).
        """
        self._check(features, reference)
        kept, factor = subsets(len(features), resamples, seed)
        value = self.measure(features, reference, seed)
        if kept.shape[1] < self.minimum:
            return Interval(value, math.nan, math.nan)
        found = self.resample(features, reference, kept, seed)
        return interval(value, found, level, self.bounds, factor)

    def _check(self, features: Tensor, reference: Reference) -> None:
        wrong = _mistakes("images", features, self.minimum)
        if self.reference:
            wrong += self._reference_mistakes(features.shape[-1], reference)
        if wrong:
            raise DataError(
                "; ".join(wrong),
                where=f"metric {self.name!r}",
                fix=f"finite features (N, D) of one network, N at least {self.minimum}",
            )

    def _reference_mistakes(self, width: int, reference: Reference) -> list[str]:
        if reference is None:
            return ["there is no reference set"]
        if isinstance(reference, Statistics):
            if not self.summarized:
                return ["the features of the reference set are needed, not their statistics"]
            wrong, own = [], len(reference.mean)
        else:
            wrong = _mistakes("reference images", reference, self.minimum)
            own = reference.shape[-1]
        if own != width:
            wrong.append(f"{width} features an image, and {own} of the reference")
        return wrong


def _mistakes(what: str, features: Tensor, minimum: int) -> list[str]:
    if features.ndim != 2 or not features.is_floating_point():
        return [f"{what} have features {tuple(features.shape)}, {features.dtype}"]
    if len(features) < minimum:
        return [f"{len(features)} {what}, and {minimum} are needed"]
    if not bool(features.isfinite().all()):
        return [f"features of {what} are not all finite"]
    return []


def _warn_of_few(what: str, count: int, width: int) -> None:
    # A file of statistics may not say its number of images: 0.
    if 0 < count <= width:
        warnings.warn(
            f"Frechet distance {what}: below {width + 1} the covariance of {width} features is "
            "singular and the distance too large; compare only with as many images",
            stacklevel=5,
        )


def _statistics(reference: Tensor | Statistics) -> Statistics:
    return reference if isinstance(reference, Statistics) else Statistics.of(reference)


def _frechet(features: Tensor, reference: Tensor | Statistics, _seed: int) -> float:
    own, other = Statistics.of(features), _statistics(reference)
    width = features.shape[1]
    _warn_of_few(f"from {own.count} images", own.count, width)
    _warn_of_few(f"to {other.count} reference images", other.count, width)
    return frechet_distance(own, other)


_distance = partial(
    SetMetric,
    better="lower",
    reference=True,
    minimum=2,
    bounds=(0, math.inf),
    measure=_frechet,
    resample=lambda x, y, kept, _seed: resampled_frechet(x, _statistics(y), kept),
    summarized=True,
)
_share = partial(
    SetMetric,
    kind="pooled",
    better="higher",
    reference=True,
    minimum=NEIGHBOURS + 1,
    bounds=(0, 1),
)
_METRICS = (
    _distance(name="frechet", kind="pooled", common="FID", general="Frechet {} distance"),
    _distance(name="sfid", kind="spatial", common="sFID", general="Spatial Frechet {} distance"),
    SetMetric(
        name="kid",
        kind="pooled",
        better="lower",
        reference=True,
        minimum=2,
        common="KID",
        general="Kernel {} distance",
        bounds=UNBOUNDED,
        measure=kernel_distance,
        resample=lambda x, y, kept, _seed: resampled_kernel_distance(x, y, kept),
    ),
    SetMetric(
        name="is",
        kind="logits",
        better="higher",
        reference=False,
        minimum=2 * PARTS,
        common="Inception Score",
        general="{} class score",
        bounds=(1, math.inf),
        measure=lambda x, _y, seed: inception_score(x, seed),
        resample=lambda x, _y, kept, seed: resampled_inception_score(x, kept, seed),
    ),
    _share(
        name="precision",
        common="Precision (Inception v3)",
        general="Precision ({})",
        measure=lambda x, y, _seed: precision(x, y),
        resample=lambda x, y, kept, _seed: resampled_precision(x, y, kept),
    ),
    _share(
        name="recall",
        common="Recall (Inception v3)",
        general="Recall ({})",
        measure=lambda x, y, _seed: recall(x, y),
        resample=lambda x, y, kept, _seed: resampled_recall(x, y, kept),
    ),
)

SET_METRICS: dict[str, SetMetric] = {metric.name: metric for metric in _METRICS}
"""Every metric of image sets."""
