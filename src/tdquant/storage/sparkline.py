"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float] | Tensor, width: int = 24) -> str:
    """Positive values ``(K,)`` as bars of eight heights, even in log-scale from the least to the
    largest; the geometric mean of the values that one character stands for. Flat curves are low,
    and curves with values that are not finite are question marks.

    Arguments:
        values: The curve.
        width: Most characters.
    """
    logs = torch.as_tensor(values, dtype=torch.float64).clamp(min=1e-300).log()
    parts = [part.mean() for part in logs.tensor_split(min(width, len(logs)))]
    heights = torch.stack(parts)
    if not heights.isfinite().all():
        return "?" * len(parts)
    span = float(heights.max() - heights.min())
    if span < 1e-9:
        return BARS[0] * len(parts)
    level = (heights - heights.min()) / span * len(BARS)
    return "".join(BARS[min(int(v), len(BARS) - 1)] for v in level.tolist())
