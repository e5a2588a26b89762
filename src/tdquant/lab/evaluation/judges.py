"""Everything that images are judged by, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdquant.errors import DataError
from tdquant.lab.evaluation.features import FeatureShards
from tdquant.lab.evaluation.progress import Progress, wait_for
from tdquant.lab.evaluation.prompted import clip_metric
from tdquant.lab.evaluation.references import Reference, ReferenceSet, find_reference
from tdquant.lab.evaluation.scores import choose_metrics, kinds_of, score_sets
from tdquant.lab.metrics import FeatureNetwork, SetMetric, load_network


@dataclass(frozen=True)
class Judges:
    """What images are judged by.

    Attributes:
        network: The feature network, on the device where it runs.
        metrics: The metrics of sets.
        reference: The reference set as it was asked for.
        resamples: Subsets, or draws of the bootstrap, that each interval is made from.
        resize: Side that images and reference images in a folder are resized to, or None.
        clip: Folder of a CLIP model, or None.
        texts: The prompt of every image, or None.
    """

    network: FeatureNetwork
    metrics: list[SetMetric]
    reference: str | Path | None
    resamples: int
    resize: int | None = None
    clip: Path | None = None
    texts: Sequence[str] | None = None

    def described(self) -> dict[str, Any]:
        """What a record says of the network."""
        network = self.network
        return {"name": network.name, "digest": network.digest, "title": network.title}

    def asked(self) -> dict[str, Any]:
        """What tells these judges from others."""
        return {
            "network": self.network.digest,
            "metrics": [metric.name for metric in self.metrics],
            "reference": None if self.reference is None else str(self.reference),
            "resamples": self.resamples,
            "resize": self.resize,
            "clip": None if self.clip is None else str(self.clip),
        }

    def find(self, size: tuple[int, int] | None) -> ReferenceSet | None:
        """The reference set, if a metric needs one, for images of a size."""
        if self.reference is None or not kinds_of(self.metrics, with_reference=True):
            return None
        return find_reference(self.reference, self.network, size=size, resize=self.resize)

    def open(
        self, found: ReferenceSet | None, state: Progress, progress: bool
    ) -> Reference | None:
        """What ``find`` found, with its features. Where they are not in the cache that takes long,
        and the run's folder says so.
        """
        if found is None:
            return None

        def seen(done: int, of: int) -> None:
            state.at("features of the reference set", done, of)

        return found.open(kinds_of(self.metrics, with_reference=True), progress, seen)

    def judge(
        self, files: Sequence[Path], out: Path, reference: Reference | None, state: Progress,
        rank: int, world: int, progress: bool,
    ) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        """All metrics of images, in the first process; None in the others, which do their share
        of the features.
        """
        shards = FeatureShards(
            out / "features", files, self.network, kinds_of(self.metrics), self.resize
        )
        shards.make(
            rank, world, progress and rank == 0,
            lambda done: state.at("features", min(done * world, len(files)), len(files)),
        )  # fmt: skip
        if rank:
            return None
        wait_for(shards.missing, "feature shards", out,
                 lambda left: state.at("features", shards.count - left, shards.count))  # fmt: skip
        found = score_sets(
            shards.gather(), reference, self.metrics, self.network, resamples=self.resamples,
            seen=lambda done: state.at("metrics", done, len(self.metrics) + 1),
        )  # fmt: skip
        if self.clip is not None and self.texts is not None:
            found["clip"] = clip_metric(
                files, self.texts, self.clip, self.resamples, resize=self.resize,
                device=self.network.device,
                seen=lambda done: state.at("CLIP score", done, len(files)),
            )  # fmt: skip
        return found


def make_judges(
    network: str | FeatureNetwork,
    weights: str | Path | None,
    device: str,
    metrics: Sequence[str] | None,
    reference: str | Path | None,
    images: int,
    resamples: int,
    resize: int | None = None,
    clip: str | Path | None = None,
    texts: Sequence[str] | None = None,
) -> Judges:
    """Judges by what was asked for; the arguments are those of ``evaluate``.

    Raises:
        DataError: Metrics, reference set, prompts and images do not go together.
    """
    if clip is not None and texts is None:
        raise DataError("a CLIP model without prompts", fix="--prompts FILE, one a line")
    net = network if isinstance(network, FeatureNetwork) else load_network(network, weights)
    chosen = choose_metrics(metrics, net, reference, images)
    return Judges(
        net.to(device),
        chosen,
        reference,
        resamples,
        resize,
        None if clip is None else Path(clip),
        texts,
    )
