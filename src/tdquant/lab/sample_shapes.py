"""The shape of what a denoiser makes, by its configuration."""

from __future__ import annotations

from typing import Any

from torch import nn


def sample_shape(model: nn.Module) -> tuple[int, ...] | None:
    """The shape of one sample according to the model's configuration."""
    config: dict[str, Any] = dict(getattr(model, "config", None) or {})
    patch = int(config.get("patch", 1))
    config = config.get("unet", config)
    channels = config.get("in_channels")
    side = config.get("sample_size", config.get("image_size"))
    if channels is None or side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return channels // patch**2, height * patch, width * patch
