"""Images as files: bytes from tensors in [-1, 1], PNGs written whole, grids."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.errors import ModelError
from tdquant.files.writing import replacing
from tdquant.support.optional import require


def to_uint8(images: Tensor) -> Tensor:
    """Images ``(N, *)`` in [-1, 1] as uint8, what is outside clipped; uint8 ones as they are.

    Raises:
        ModelError: A number is NaN or infinite.
    """
    if images.dtype == torch.uint8:
        return images
    finite = images.isfinite()
    if not finite.all():
        bad = sum(not image.all() for image in finite)
        raise ModelError(
            f"{bad} of {len(images)} images have NaN or infinite numbers",
            fix="look for them in the model's weights; then try more sampler steps, or float32",
        )
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, gap: int = 2) -> Tensor:
    """One picture ``(3, H', W')``, uint8, of images ``(N, C, H, W)`` in [-1, 1], nearly square."""
    tiles = to_uint8(images.detach()).cpu()
    if tiles.shape[1] != 3:
        tiles = tiles[:, :1].expand(-1, 3, -1, -1)
    columns = math.ceil(len(tiles) ** 0.5)
    rows = math.ceil(len(tiles) / columns)
    tiles = F.pad(tiles, (gap, 0, gap, 0), value=255)
    missing = rows * columns - len(tiles)
    tiles = torch.cat([tiles, tiles.new_full((missing, *tiles.shape[1:]), 255)])
    height, width = tiles.shape[-2:]
    sheet = tiles.view(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4)
    return F.pad(sheet.reshape(3, rows * height, columns * width), (0, gap, 0, gap), value=255)


def save_png(picture: Tensor, path: str | Path) -> None:
    """Writes a picture ``(C, H, W)``, uint8, by a temporary name: no half file is ever seen."""
    image = require("PIL.Image", "data")
    array = picture.permute(1, 2, 0).numpy()
    with replacing(Path(path)) as fresh:
        image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(fresh, "PNG")
