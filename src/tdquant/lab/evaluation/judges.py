"""Judging images: features, metrics of the set with intervals, CLIP scores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.errors import DataError
from tdquant.lab.evaluation.config import JudgeConfig
from tdquant.lab.evaluation.feature_files import PART, FeatureShards
from tdquant.lab.evaluation.folder import has_partial_results
from tdquant.lab.evaluation.image_files import read_pictures
from tdquant.lab.evaluation.progress import Progress, now, wait_for
from tdquant.lab.evaluation.record import Record
from tdquant.lab.evaluation.references import Reference, find_reference
from tdquant.lab.evaluation.subject import digest_of
from tdquant.lab.metrics import (
    SET_METRICS,
    ClipScore,
    FeatureNetwork,
    Interval,
    SetMetric,
    Statistics,
    bootstrap,
    load_network,
)
from tdquant.support.machine import machine, version

USUAL = ("frechet", "kid", "precision", "recall")
"""Default metrics; on the network of the FID, all of them."""


class Judges:
    """What images are judged by, in one run. Most arguments are those of ``evaluate``.

    Arguments:
        out: Folder of the run.
        network: The feature network or its name.
        metrics: Names of metrics of sets, or None.
        reference: The reference set, or None.
        images: Number of images.
        config: Options.

    Attributes:
        state: The progress of the run.
        opened: The reference set with its features, once it is open.

    Raises:
        DataError: Metrics, reference set, prompts and images do not fit together.
    """

    def __init__(
        self,
        out: Path,
        network: str | FeatureNetwork,
        metrics: Sequence[str] | None,
        reference: str | Path | None,
        images: int,
        config: JudgeConfig,
    ) -> None:
        self._began, self._resumed = time.perf_counter(), has_partial_results(out)
        if config.clip is not None and config.prompts is None:
            raise DataError("a CLIP model without prompts", fix="--prompts FILE, one a line")
        if not isinstance(network, FeatureNetwork):
            network = load_network(network, config.weights)
        self.metrics = choose_metrics(metrics, network, reference, images)
        self.network = network.to(config.place)
        self.out, self.reference, self.config = out, reference, config
        self.state = Progress(out, writes=config.rank == 0)
        self.opened: Reference | None = None

    def asked(self) -> dict[str, Any]:
        """What distinguishes these judges from others."""
        clip = self.config.clip
        return {
            "network": self.network.digest,
            "metrics": [metric.name for metric in self.metrics],
            "reference": None if self.reference is None else str(self.reference),
            "resamples": self.config.resamples,
            "resize": self.config.resize,
            "clip": None if clip is None else str(clip),
        }

    def find_reference(self, size: tuple[int, int] | None) -> Reference | None:
        """The reference set for images of a size, if a metric needs one."""
        if self.reference is None or not self._kinds(reference=True):
            return None
        return find_reference(self.reference, self.network, size=size, resize=self.config.resize)

    def open_reference(self, found: Reference | None) -> None:
        """Reads the features of the reference set, or computes them, which takes long."""
        if found is None:
            return

        def on_part(done: int, of: int) -> None:
            self.state.update("features of the reference set", done, of)

        kinds = self._kinds(reference=True)
        self.opened = found.with_features(self.network, kinds, self.config.progress, on_part)

    def judge(self, files: Sequence[Path]) -> dict[str, dict[str, Any]] | None:
        """All metrics of images, as a record has them; None in other processes than the first,
        which compute their share of the features.
        """
        rank, world, update = self.config.rank, self.config.world, self.state.update
        folder, resize = self.out / "features", self.config.resize
        shards = FeatureShards(folder, files, self.network, self._kinds(), resize)
        shards.compute(
            rank, world, self.config.progress and rank == 0,
            lambda done: update("features", min(done * world, len(files)), len(files)),
        )  # fmt: skip
        if rank:
            return None
        count = shards.count
        wait_for(
            shards.count_missing, "feature shards", self.out,
            lambda missing: update("features", count - missing, count),
        )  # fmt: skip
        features, found = shards.gather(), {}
        for done, metric in enumerate(self.metrics):
            update("metrics", done, len(self.metrics) + 1)
            own, other = features[metric.kind], None
            if metric.reference and self.opened is not None:
                other = self.opened.of(metric.kind, whole=not metric.summarized)
            value = _measure(metric, own, other, self.config.resamples)
            found[metric.name] = entry(metric.title(self.network), value, len(own), metric.better)
        if self.config.clip is not None and self.config.prompts is not None:
            found["clip"] = self._clip_score(files, self.config.clip, self.config.prompts)
        return found

    def record(self, *, cost: dict[str, Any], **parts: Any) -> Record:
        """A record of this run; ``parts`` are those that depend on what made the images."""
        network, seconds = self.network, round(time.perf_counter() - self._began, 3)
        return Record(
            tdquant=version(),
            created=now(),
            reference=None if self.opened is None else self.opened.to_dict(),
            network={"name": network.name, "digest": network.digest, "title": network.title},
            cost={"seconds": seconds, "resumed": self._resumed, **cost},
            machine=machine(self.config.place),
            command=self.config.command,
            **parts,
        )

    def _kinds(self, reference: bool = False) -> tuple[str, ...]:
        """The kinds of features of the images, or only of the reference set, that metrics take."""
        return tuple(sorted({m.kind for m in self.metrics if m.reference or not reference}))

    def _clip_score(
        self, files: Sequence[Path], folder: str | Path, prompts: Sequence[str]
    ) -> dict[str, Any]:
        """The CLIP score of images with their prompts, in the form of a record."""
        score, parts = ClipScore(folder).to(self.network.device), []
        for first in range(0, len(files), PART):
            end = min(first + PART, len(files))
            images = read_pictures(files[first:end], self.config.resize)
            texts = [prompts[i % len(prompts)] for i in range(first, end)]
            parts.append(score(images, texts).cpu())
            self.state.update("CLIP score", end, len(files))
        value = mean_interval(torch.cat(parts).double(), self.config.resamples)
        measured = entry(score.title, value, len(files), score.better)
        return measured | {"network": digest_of(score.model)}


def mean_interval(values: Tensor, resamples: int) -> Interval:
    """The mean of values ``(N,)`` with its bootstrap interval; NaN where there is none."""
    if resamples >= 2 and len(values):
        return bootstrap(values, resamples=resamples)
    return Interval(float(values.mean()), torch.nan, torch.nan)


def entry(title: str, found: Interval, images: int, better: str) -> dict[str, Any]:
    """A metric in the form of a record."""
    return {
        "title": title,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "images": images,
        "better": better,
        "unit": "",
    }


def _measure(
    metric: SetMetric, own: Tensor, other: Tensor | Statistics | None, resamples: int
) -> Interval:
    """A metric and its interval, which needs more images than the metric itself."""
    if resamples >= 2:
        with contextlib.suppress(DataError):  # what is wrong with the images, compute says too
            return metric.interval(own, other, resamples=resamples)
    return Interval(metric.compute(own, other), torch.nan, torch.nan)


def choose_metrics(
    names: Sequence[str] | None,
    network: FeatureNetwork,
    reference: str | Path | None,
    images: int,
) -> list[SetMetric]:
    """The metrics that are asked for by name, or the default ones that can be computed.

    Raises:
        DataError: A name is unknown, the network or the reference set lacks what a metric needs,
            or there are too few images; all mistakes are listed.
    """
    if names is None:
        wanted = tuple(SET_METRICS) if network.standard else USUAL
        names = [name for name in wanted if not _lacks(SET_METRICS[name], network, reference)]
    names = list(dict.fromkeys(names))
    wrong = [f"no metric {n!r}: one of {', '.join(SET_METRICS)}" for n in names
             if n not in SET_METRICS]  # fmt: skip
    chosen = [SET_METRICS[name] for name in names if name in SET_METRICS]
    for metric in chosen:
        wrong += [f"{metric.name}: {lack}" for lack in _lacks(metric, network, reference)]
        if images < metric.minimum:
            wrong.append(f"{metric.name}: {images} images, and {metric.minimum} are needed")
    if wrong:
        raise DataError("\n  - ".join(["metrics that cannot be computed:", *wrong]))
    return chosen


def _lacks(metric: SetMetric, network: FeatureNetwork, reference: str | Path | None) -> list[str]:
    """What a metric needs and does not get."""
    lacks = []
    if metric.kind not in network.kinds:
        lacks.append(f"{network.title} gives no {metric.kind} features")
    if metric.reference and reference is None:
        lacks.append("there is no reference set")
    is_file = reference is not None and Path(reference).suffix in (".npz", ".safetensors")
    if metric.reference and is_file and not (metric.summarized and metric.kind == "pooled"):
        lacks.append("the reference set is a file of statistics, and its features are needed")
    return lacks
