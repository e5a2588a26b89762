"""Pictures of a float and a quantized pipeline from the same noise, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.calls.from_pipeline import quietly, record_pipeline
from tdquant.diffusion.pictures import save_png, to_uint8

GAP = 2


def render(pipe: Any, prompts: Any, **options: Any) -> Tensor | None:
    """What a pipeline draws, in [-1, 1], ``(N, 3, H, W)``; of videos the middle frame. None if it
    gives no pictures.

    Arguments:
        pipe: A diffusers pipeline.
        prompts: As for ``tdq.trajectories``, and so are the options.
    """
    drawn = []
    options = {"output_type": "np", **options}
    recording = record_pipeline(pipe, prompts, progress=False, **options)
    with torch.no_grad(), quietly(pipe):
        for arguments in recording.arguments():
            out = pipe(**arguments, return_dict=False)[0]
            pictures = torch.as_tensor(out) if not isinstance(out, list) else None
            if pictures is None or pictures.ndim not in (4, 5) or pictures.shape[-1] not in (1, 3):
                return None
            if pictures.ndim == 5:
                pictures = pictures[:, pictures.shape[1] // 2]
            rgb = pictures.expand(*pictures.shape[:-1], 3)
            drawn.append(rgb.permute(0, 3, 1, 2).float() * 2 - 1)
    return torch.cat(drawn)


def compare(pictures: Tensor, exact: Tensor) -> dict[str, float]:
    """Mean squared error of pictures in [0, 1], and its peak signal-to-noise ratio in dB."""
    error = float((pictures / 2 - exact / 2).square().mean())
    return {"mse": error, "psnr": -10 * math.log10(max(error, 1e-12))}


def draw_comparison(exact: Tensor, pictures: Tensor, path: Path) -> None:
    """Writes a PNG: the float pipeline's pictures above, the quantized one's below."""
    rows = []
    for images in (exact, pictures):
        tiles = F.pad(to_uint8(images), (GAP, GAP, GAP, GAP), value=255)
        rows.append(torch.cat(list(tiles), dim=2))
    save_png(torch.cat(rows, dim=1), path)
