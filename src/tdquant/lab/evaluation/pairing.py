"""A model against another one: image by image from the same noise, and the denoisers over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tdquant.errors import DataError
from tdquant.lab.evaluation.config import EvaluationConfig
from tdquant.lab.evaluation.folder import count_missing
from tdquant.lab.evaluation.generator import Generator, Sampling
from tdquant.lab.evaluation.image_files import read_pictures
from tdquant.lab.evaluation.judges import entry, mean_interval
from tdquant.lab.evaluation.progress import Progress, wait_for
from tdquant.lab.evaluation.subject import digest_of_json
from tdquant.lab.metrics import PAIRED, sqnr_over_time
from tdquant.lab.runs.pictures import picture_path

PairedMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two batches of images to one value a pair."""

UNITS = {"psnr": "dB"}
HIGHER = ("psnr", "ssim")
_CHUNK = 64
CHECKED, CHECKS = 8, 10
"""Samples and timesteps at which the denoisers' outputs are compared."""


class Pair:
    """Images of another model from the same noise.

    They lie beside the run, where other runs find them too, in a folder whose name is a digest of
    the model and of how it is sampled.

    Arguments:
        other: The other model.
        sampling: How its images are made.
        out: Folder of the run.
        count: Number of images that are compared.
    """

    def __init__(self, other: Generator, sampling: Sampling, out: Path, count: int) -> None:
        self.other, self.sampling, self.out, self.count = other, sampling, out, count
        digest = digest_of_json(other.made_with(sampling))
        self.folder = out.resolve().parent / f".float-{digest}"

    def sample(self, config: EvaluationConfig, state: Progress) -> None:
        """Makes this process's share of the other model's images."""
        self.other.write(
            self.folder, self.count, self.sampling, config,
            lambda n: state.update("pictures to compare with", min(n, self.count), self.count),
        )  # fmt: skip

    def compare(self, resamples: int, more: Mapping[str, PairedMetric]) -> dict[str, Any]:
        """The comparison in the form of a record."""
        files = [picture_path(self.folder, i) for i in range(self.count)]
        wait_for(lambda: count_missing(files), "pictures to compare with", self.folder)
        own = self.out / "images"
        metrics = paired_metrics(own, self.folder, self.count, resamples=resamples, more=more)
        against = self.other.describe(self.other.name)
        return {"against": against, "images": self.count, "metrics": metrics}


def paired_metrics(
    own: Path,
    other: Path,
    count: int,
    *,
    resamples: int = 100,
    more: Mapping[str, PairedMetric] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every paired metric of images 0 .. count - 1 of two folders, in the form of a record.

    ``more`` are metrics beside ``PAIRED``: those with weights, a ``digest`` and a ``title``.

    Raises:
        DataError: The images of the two folders differ in size.
    """
    sets = [
        read_pictures([picture_path(folder, i) for i in range(count)]) for folder in (own, other)
    ]
    if sets[0].shape != sets[1].shape:
        raise DataError(
            f"images of shapes {tuple(sets[0].shape)} and {tuple(sets[1].shape)}",
            where="paired metrics",
            fix="a model of the same image size for --against",
        )
    a, b = ((images.float() / 127.5 - 1).split(_CHUNK) for images in sets)
    found = {}
    metrics: dict[str, PairedMetric] = {**PAIRED, **(more or {})}
    for name, metric in metrics.items():
        values = torch.cat([metric(x, y) for x, y in zip(a, b, strict=True)])
        # Of equal images PSNR is infinite, and a mean with infinities says nothing.
        finite = values[values.isfinite()].double()
        title = getattr(metric, "title", name.upper())
        better = "higher" if name in HIGHER else "lower"
        found[name] = entry(title, mean_interval(finite, resamples), count, better) | {
            "unit": UNITS.get(name, ""),
            "median": float(values.median()),
            "infinite": count - len(finite),
        }
        # Values by two networks, or by other weights of one, must not be compared.
        if (network := getattr(metric, "digest", None)) is not None:
            found[name]["network"] = network
    return found


def sqnr(
    model: Any, against: Generator, steps: int, seed: int, device: str
) -> dict[str, list[float]]:
    """SQNR of a denoiser's output against another one's, on that one's trajectories."""
    calls = against.calls(CHECKED, min(CHECKS, steps), seed)
    exact = against.model.to(device).eval()
    with torch.no_grad():
        found = sqnr_over_time(model, exact, calls)
    return {"times": list(found), "decibels": list(found.values())}
