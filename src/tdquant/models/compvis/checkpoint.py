"""Latent-diffusion checkpoints by their names: averaged weights, fit, noise schedule, writing.

model.diffusion_model.*     the denoiser
model_ema.*                 averaged parameters; their names have lost the dots
first_stage_model.*         the first stage
betas, alphas_cumprod, ...  the noise schedule
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.errors import ModelError, raise_collected
from tdquant.files.checkpoints import LazyTensor
from tdquant.files.writing import replacing, unshared, write_tensors

State = Mapping[str, LazyTensor]
"""Tensors of a checkpoint file by their names in it."""

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
CONDITION = "cond_stage_model."
LISTED = 8
"""Names of tensors that an error lists before it counts the rest."""


def below(state: State, prefix: str) -> dict[str, LazyTensor]:
    """The tensors below ``prefix``, named without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def ema_name(name: str) -> str:
    """What the average of the UNet's parameter ``name`` is called in a checkpoint."""
    return EMA + "diffusion_model" + name.replace(".", "")


def with_ema(
    weights: State, state: State, parameters: Collection[str], where: str
) -> dict[str, LazyTensor] | None:
    """The UNet's tensors ``weights`` with averages in place of all ``parameters``, or None where
    the checkpoint has none.

    Raises:
        ModelError: Only some parameters have an average, or an average belongs to none of them.
    """
    averages = [name for name in state if name.startswith(EMA + "diffusion_model")]
    if not averages:
        return None
    names = {ema_name(name): name for name in (*weights, *parameters)}
    missing = [name for name in parameters if ema_name(name) not in state]
    strange = [name for name in averages if name not in names]
    raise_collected(
        ModelError,
        [f"{name}: no average ({ema_name(name)})" for name in missing]
        + [f"{name}: an average of no parameter of the UNet" for name in strange],
        "the averaged parameters",
        LISTED,
        where=where,
        why="the checkpoint averages other parameters, so it is of another model or cut",
        fix="the configuration that the checkpoint was trained with, or ema=False",
    )
    return {**weights, **{names[name]: state[name] for name in averages}}


def check_fit(found: State, wanted: Mapping[str, Tensor], what: str, where: str) -> None:
    """Checks names and shapes before anything is loaded.

    Raises:
        ModelError: They differ; the first names of each kind are listed.
    """
    kinds = {
        "missing": [n for n in wanted if n not in found],
        "unexpected": [n for n in found if n not in wanted],
        "not of real numbers": [
            f"{n} {found[n].dtype}" for n in wanted if n in found and not _real(found[n].dtype)
        ],
        "of another shape": [
            f"{n} {tuple(found[n].shape)}, not {tuple(wanted[n].shape)}"
            for n in wanted
            if n in found and found[n].shape != wanted[n].shape
        ],
    }
    lines = []
    for kind, names in kinds.items():
        more = len(names) - LISTED
        lines += [f"{kind}: {name}" for name in names[:LISTED]]
        lines += [f"{kind}: {more} more"] if more > 0 else []
    if lines:
        raise ModelError(
            f"the checkpoint does not fit the {what} of the configuration:\n  - "
            + "\n  - ".join(lines),
            where=where,
            fix="the configuration that the checkpoint was trained with",
        )


def _real(dtype: torch.dtype) -> bool:
    """Whether the dtype holds weights as they are; those of 8 bits have scales elsewhere."""
    return dtype.is_floating_point and dtype.itemsize > 1


def check_schedule(state: State, alphas_cumprod: Tensor, where: str) -> None:
    """Compares the noise schedule in a checkpoint, if there is one, with the configuration's.

    Under another schedule a model silently sees noise levels that it was not trained on.

    Raises:
        ModelError: They differ.
    """
    stored = next((state[name] for name in ("alphas_cumprod", "betas") if name in state), None)
    if stored is None:
        return
    last = ""
    if stored.dtype.is_floating_point and stored.shape == alphas_cumprod.shape:
        found = stored.read()
        if "alphas_cumprod" not in state:
            found = (1 - found.double()).cumprod(0)
        # The tolerance holds bfloat16: buffers may have been cast with the weights.
        if torch.allclose(found.float(), alphas_cumprod, 5e-3, 1e-5):
            return
        last = f" down to {float(found[-1]):.3g}"
    mine = f"{len(alphas_cumprod)} timesteps down to {float(alphas_cumprod[-1]):.3g}"
    raise ModelError(
        "the checkpoint has another noise schedule than the configuration",
        where=where,
        why=f"alphas_cumprod: {stored.shape.numel()} timesteps{last} in the checkpoint, {mine} in "
        "the configuration",
        fix="timesteps, beta_schedule, linear_start and linear_end of its training",
    )


def latent_factor(params: Mapping[str, Any], state: State, where: str) -> float | None:
    """Factor from the latents of the first stage to those of the denoiser. It is never guessed.

    Arguments:
        params: ``model.params`` of the configuration.
        state: The checkpoint; empty for an untrained model.
        where: The file, for errors.

    Returns:
        The checkpoint's ``scale_factor``, else the configuration's, else 1, latent diffusion's
        default. With ``scale_by_std`` and no checkpoint, None: it is measured on the first batch.

    Raises:
        ModelError: With ``scale_by_std`` the checkpoint has no factor, or it is not positive.
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


def write_checkpoint(state: Mapping[str, Tensor], file: str | os.PathLike[str]) -> Path:
    """Writes a state dict, whole or not at all, in the format of its suffix: ``.safetensors``, or
    torch's.
    """
    path = Path(file)
    tensors = unshared({name: tensor.detach() for name, tensor in state.items()})
    with replacing(path) as fresh:
        if path.suffix == ".safetensors":
            write_tensors(tensors, fresh, metadata={"format": "pt"})
        else:
            with open(fresh, "wb") as out:  # given a name, torch would write it into the file
                torch.save({"state_dict": tensors}, out)
    return path
