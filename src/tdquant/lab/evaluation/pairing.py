"""A quantized model against another one, image by image from the same noise, and over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tdquant.errors import DataError
from tdquant.lab.evaluation.reading import read_pictures
from tdquant.lab.evaluation.sampling import Generator, Sampling
from tdquant.lab.evaluation.subject import digest_of_json
from tdquant.lab.metrics import PAIRED, sqnr_over_time
from tdquant.lab.metrics.bootstrap import bootstrap
from tdquant.lab.runs.pictures import picture_path

PairedMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two batches of images to one value a pair."""

UNITS = {"psnr": "dB"}
HIGHER = ("psnr", "ssim")
CHECKED, CHECKS = 8, 10
"""Samples and timesteps of which the denoisers' outputs are compared."""


def pictures_of(against: Generator, sampling: Sampling, out: Path) -> Path:
    """Folder of the other model's pictures: beside the run, where other runs find them too.

    Its name is a digest of the model and of how they are sampled.
    """
    asked = {
        "seed": sampling.seed,
        "steps": sampling.steps,
        "eta": sampling.eta,
        **against.settings(sampling),
    }
    return out.resolve().parent / f".float-{digest_of_json(asked)}"


def paired_metrics(
    own: Path,
    other: Path,
    count: int,
    *,
    resamples: int = 100,
    seed: int = 0,
    more: Mapping[str, PairedMetric] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every paired metric of images 0 .. count - 1 of two folders, as a record has it.

    Arguments:
        own: A folder of images.
        other: The folder that they are compared with.
        count: Number of images.
        resamples: Draws of the bootstrap.
        seed: Its seed.
        more: Metrics beside ``PAIRED``: those that have weights, with their ``digest`` and a
            ``title`` that says which they are.

    Raises:
        DataError: Images of two sizes.
    """
    sets = [read_pictures(_files(folder, count)) for folder in (own, other)]
    if sets[0].shape != sets[1].shape:
        raise DataError(
            f"images of shapes {tuple(sets[0].shape)} and {tuple(sets[1].shape)}",
            where="paired metrics",
            fix="a model of the same image size for --against",
        )
    a, b = (images.float() / 127.5 - 1 for images in sets)
    found = {}
    metrics: dict[str, PairedMetric] = {**PAIRED, **(more or {})}
    for name, metric in metrics.items():
        values = torch.cat([metric(x, y) for x, y in zip(a.split(64), b.split(64), strict=True)])
        # Of images that are equal to the last bit PSNR is infinite, and no mean of it says much.
        finite = values[values.isfinite()].double()
        low, high = None, None
        if resamples >= 2 and len(finite):
            interval = bootstrap(finite, resamples=resamples, seed=seed)
            low, high = interval.low, interval.high
        found[name] = {
            "title": getattr(metric, "title", name.upper()),
            "value": float(finite.mean()),
            "low": low,
            "high": high,
            "median": float(values.median()),
            "images": count,
            "infinite": count - len(finite),
            "better": "higher" if name in HIGHER else "lower",
            "unit": UNITS.get(name, ""),
        }
        # Values by two networks, or by one with other weights, must not be compared.
        if (network := getattr(metric, "digest", None)) is not None:
            found[name]["network"] = network
    return found


def _files(folder: Path, count: int) -> Sequence[Path]:
    return [picture_path(folder, i) for i in range(count)]


def sqnr(
    model: Any, against: Generator, steps: int, seed: int, device: str
) -> dict[str, list[float]]:
    """SQNR of a denoiser's output against another one's on that one's trajectories."""
    calls = against.calls(CHECKED, min(CHECKS, steps), seed)
    exact = against.model.to(device).eval()
    with torch.no_grad():
        found = sqnr_over_time(model, exact, calls)
    return {"times": list(found), "decibels": list(found.values())}
