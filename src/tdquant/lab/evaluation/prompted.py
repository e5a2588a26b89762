"""How well images show what their prompts say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tdquant.lab.evaluation.reading import read_pictures
from tdquant.lab.evaluation.subject import digest_of
from tdquant.lab.metrics import ClipScore, bootstrap

_PART = 50


def clip_metric(
    files: Sequence[Path],
    texts: Sequence[str],
    folder: Path,
    resamples: int = 100,
    *,
    resize: int | None = None,
    device: torch.device | str = "cpu",
    seen: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """CLIP score of images with their prompts, as a record has it.

    Arguments:
        files: The images.
        texts: The prompt of each.
        folder: The CLIP model.
        resamples: Draws of the bootstrap.
        resize: Side to resize images to, or None.
        device: Where to compute.
        seen: Called with the number of images that are scored.

    Raises:
        DataError: The folder holds no CLIP model.
    """
    score, parts = ClipScore(folder).to(device), []
    for i in range(0, len(files), _PART):
        images = read_pictures(files[i : i + _PART], resize)
        parts.append(score(images, texts[i : i + _PART]).cpu())
        seen(min(i + _PART, len(files)))
    values = torch.cat(parts).double()
    found = bootstrap(values, resamples=resamples) if resamples >= 2 else None
    return {
        "title": score.title,
        "value": float(values.mean()),
        "low": found and found.low,
        "high": found and found.high,
        "images": len(files),
        "better": score.better,
        "unit": "",
        "network": digest_of(score.model),
    }
