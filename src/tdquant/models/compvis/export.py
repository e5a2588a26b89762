"""Writing latent-diffusion models: as checkpoints in the published format, and as diffusers models
for pipelines.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ModelError, StorageError
from tdquant.files.looking import is_folder
from tdquant.models.compvis import checkpoint as files
from tdquant.models.compvis import published
from tdquant.models.compvis.autoencoder import to_published
from tdquant.models.pipe import Pipe
from tdquant.support.optional import require


def save_compvis(
    model: Pipe | nn.Module,
    file: str | os.PathLike[str],
    *,
    ema: nn.Module | Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint that ``load_compvis``, and latent-diffusion itself, read back.

    Arguments:
        model: A Pipe, or its UNet alone; the UNet may have the quantized layers of TDQ's authors,
            as ``load_compvis`` makes them.
        file: ``.safetensors``, or any other suffix for torch's format.
        ema: Averaged parameters by the UNet's own names, or a UNet that has them.

    Returns:
        The file. It is written whole or not at all.

    Raises:
        ModelError: The published format has no counterpart of a quantized layer, or the averages
            are not those of the UNet's parameters.
        StorageError: There is a folder of that name.
    """
    if is_folder(file):
        raise StorageError("a folder, not a file", where=str(file), fix="a name for the file")
    unet = model.unet if isinstance(model, Pipe) else model
    state = {files.UNET + name: tensor for name, tensor in published.to_published(unet).items()}
    if ema is not None:
        averages = dict(ema.named_parameters()) if isinstance(ema, nn.Module) else ema
        names = published.names(unet)
        odd = sorted(set(names) ^ set(averages))
        if odd:
            raise ModelError(
                f"{len(odd)} parameters are only in the model or only in the averages",
                where="ema",
                why=f"such as {', '.join(odd[:3])}",
                fix="averages of every parameter of the UNet, by its names",
            )
        for name, tensor in averages.items():
            shape = state[files.UNET + names[name]].shape  # of steps, that of the published ones
            state[files.ema_name(names[name])] = tensor.reshape(shape)
        # The authors' code keeps, and averages, a static step beside a temporal scale's network.
        for name in published.unused_steps(unet):
            state[files.ema_name(name)] = state[files.UNET + name]
        state[files.EMA + "decay"] = torch.tensor(0.9999, dtype=torch.float32)
        state[files.EMA + "num_updates"] = torch.tensor(0, dtype=torch.int32)
    if isinstance(model, Pipe):
        state["betas"] = model.scheduler.betas
        state["alphas_cumprod"] = model.scheduler.alphas_cumprod
        if model.vae is not None:
            if model.scale_factor is not None:
                state["scale_factor"] = torch.tensor(model.scale_factor, dtype=torch.float32)
            inner = to_published(model.vae)
            state |= {files.FIRST_STAGE + name: tensor for name, tensor in inner.items()}
    return files.write_checkpoint(state, file)


def as_diffusers(unet: nn.Module) -> Any:
    """The UNet as a diffusers model, for ``DDIMPipeline``, ``LDMPipeline`` and their like.

    Arguments:
        unet: A latent-diffusion UNet, float, quantized, frozen or compiled. It is not copied.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    require("diffusers", "diffusers")
    from tdquant.models.compvis.wrapper import DiffusersUNet

    return DiffusersUNet(unet)
