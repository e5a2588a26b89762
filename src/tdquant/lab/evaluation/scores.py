"""Metrics of a set of images, with intervals, from its features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tdquant.errors import DataError
from tdquant.lab.evaluation.references import Reference
from tdquant.lab.metrics import SET_METRICS, Statistics
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.sets import SetMetric

USUAL = ("frechet", "kid", "precision", "recall")
"""What is measured where nothing else is asked for; on the network of the FID, everything."""


def choose_metrics(
    names: Sequence[str] | None,
    network: FeatureNetwork,
    reference: str | Path | None,
    images: int,
) -> list[SetMetric]:
    """The metrics that are asked for, or the usual ones that can be had.

    Arguments:
        names: Keys of ``SET_METRICS``, or None.
        network: The feature network.
        reference: The reference set, or None.
        images: Number of images.

    Raises:
        DataError: A name is unknown, the network or the reference set does not give what a metric
            needs, or there are too few images; everything that is wrong is listed.
    """
    if names is None:
        wanted = tuple(SET_METRICS) if network.standard else USUAL
        names = [n for n in wanted if n in SET_METRICS and not _lacks(n, network, reference)]
    wrong = [f"no metric {name!r}: one of {', '.join(SET_METRICS)}"
             for name in names if name not in SET_METRICS]  # fmt: skip
    chosen = [SET_METRICS[name] for name in dict.fromkeys(names) if name in SET_METRICS]
    for metric in chosen:
        wrong += [f"{metric.name}: {lack}" for lack in _lacks(metric.name, network, reference)]
        if images < metric.minimum:
            wrong.append(f"{metric.name}: {images} images, and {metric.minimum} are needed")
    if wrong:
        raise DataError("\n  - ".join(["metrics that cannot be computed:", *wrong]))
    return chosen


def _lacks(name: str, network: FeatureNetwork, reference: str | Path | None) -> list[str]:
    """What a metric needs and does not get."""
    metric, lacks = SET_METRICS[name], []
    if metric.kind not in network.kinds:
        lacks.append(f"{network.title} gives no {metric.kind} features")
    if metric.reference and reference is None:
        lacks.append("there is no reference set")
    told = reference is not None and Path(reference).suffix in (".npz", ".safetensors")
    if metric.reference and told and not (metric.summarized and metric.kind == "pooled"):
        lacks.append("the reference set is a file of statistics, and its features are needed")
    return lacks


def kinds_of(metrics: Sequence[SetMetric], with_reference: bool = False) -> tuple[str, ...]:
    """The kinds of features that metrics take; of the reference set only what is compared."""
    chosen = [m for m in metrics if m.reference or not with_reference]
    return tuple(sorted({metric.kind for metric in chosen}))


def score_sets(
    features: dict[str, Tensor],
    reference: Reference | None,
    metrics: Sequence[SetMetric],
    network: FeatureNetwork,
    *,
    resamples: int = 100,
    seen: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Every metric with its interval over subsets of the images, as a record has it.

    Arguments:
        features: Kind -> features ``(N, D)`` of the images.
        reference: What to compare with.
        metrics: What to compute.
        network: Whose features they are.
        resamples: Number of subsets; fewer than 2 leave the intervals out.
        seen: Called with the number of metrics done.

    Raises:
        DataError: Too few images, or a reference set that a metric cannot take.
    """
    found = {}
    for done, metric in enumerate(metrics):
        seen(done)
        own = features[metric.kind]
        other = None
        if metric.reference and reference is not None:
            other = reference.of(metric.kind, whole=not metric.summarized)
        value, low, high = _measure(metric, own, other, resamples)
        found[metric.name] = {
            "title": metric.title(network),
            "value": value,
            "low": low,
            "high": high,
            "images": len(own),
            "better": metric.better,
            "unit": "",
        }
    return found


def _measure(
    metric: SetMetric, own: Tensor, other: Tensor | Statistics | None, resamples: int
) -> tuple[float, float | None, float | None]:
    """A metric and the ends of its interval, which need more images than the metric itself."""
    if resamples >= 2:
        with contextlib.suppress(DataError):  # what is wrong with the images, compute says too
            interval = metric.interval(own, other, resamples=resamples)
            return interval.value, interval.low, interval.high
    return metric.compute(own, other), None, None
