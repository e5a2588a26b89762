"""How well images show what their prompts say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tdquant.evaluate.reading import read_pictures
from tdquant.evaluate.subject import digest_of
from tdquant.metrics import ClipScore, bootstrap

_PART = 50


def clip_metric(
    files: Sequence[Path], texts: Sequence[str], folder: Path, resamples: int = 100
) -> dict[str, Any]:
    """CLIP score of images with their prompts, as a record has it.

    Raises:
        DataError: The folder holds no CLIP model.
    """
    score = ClipScore(folder)
    values = torch.cat(
        [
            score(read_pictures(files[i : i + _PART]), texts[i : i + _PART])
            for i in range(0, len(files), _PART)
        ]
    ).double()
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
