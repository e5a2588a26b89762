"""The factor from the latents of a first stage to those of the denoiser: it is never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tdquant.errors import ModelError
from tdquant.models.compvis.checkpoint import State


def latent_factor(params: Mapping[str, Any], state: State, where: str) -> float | None:
    """Factor from the latents of the first stage to those of the denoiser.

    Arguments:
        params: ``model.params`` of the configuration.
        state: The checkpoint; empty for a model that is to be trained from its start.
        where: What to call the two, for the error.

    Returns:
        The checkpoint's ``scale_factor``, else that of the configuration, else 1, latent
        diffusion's default. None if the configuration says ``scale_by_std`` and there is no
        checkpoint: the factor is then measured on the first batch of training.

    Raises:
        ModelError: The configuration says ``scale_by_std`` and the checkpoint has no factor; or
            the factor is not a positive number.
    """
    stored, given = state.get("scale_factor"), params.get("scale_factor")
    if stored is None and given is None:
        if not params.get("scale_by_std"):
            return 1.0
        if not state:
            return None
        raise ModelError(
            "the factor of the latents is not known",
            where=where,
            why="with scale_by_std: true, as in the configuration, training stores a "
            "scale_factor, and this checkpoint has none; with a wrong factor pictures turn grey",
            fix="the configuration that the checkpoint was trained with, or "
            "model.params.scale_factor=VALUE. TDQ's authors train LSUN-churches with 0.2458, as "
            "in configs/lsun_churches-ldm-kl-8.yaml",
        )
    value = math.nan
    if stored is not None:
        value = float(stored.read()) if stored.shape.numel() == 1 else math.nan
    elif isinstance(given, (int, float)):
        value = float(given)
    if not (math.isfinite(value) and value > 0):
        raise ModelError(
            f"scale_factor={value:g}", where=where, why="it is a positive number",
            fix="an earlier checkpoint, or model.params.scale_factor",
        )  # fmt: skip
    return value
