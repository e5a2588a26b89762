"""Latent-diffusion checkpoints as files and names: reading, averaged weights, fitting, writing.

model.diffusion_model.*     the denoiser
model_ema.*                 averaged parameters; their names have lost the dots
first_stage_model.*         the first stage
betas, alphas_cumprod, ...  the noise schedule
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tdquant.errors import ModelError, StorageError
from tdquant.writing import replacing, write_tensors

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
CONDITION = "cond_stage_model."
LISTED = 8
"""Names of tensors that an error lists before it counts the rest."""


def read_checkpoint(file: str | os.PathLike[str], allow_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in a ``.ckpt``, ``.pt`` or ``.pth`` of torch.

    Arguments:
        file: The file.
        allow_pickle: Let a pickle run whatever code it holds. Only for files that you trust.

    Returns:
        Tensors on the CPU, bfloat16 and float16 ones as float32.

    Raises:
        StorageError: The file is missing, cut or foreign, or is a pickle of more than tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise StorageError("no such file", where=str(path), fix="check the path")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    else:
        state = _unpickle(path, allow_pickle)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = {
        str(name): tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in (state.items() if isinstance(state, dict) else ())
        if isinstance(tensor, Tensor)
    }
    if not tensors:
        raise StorageError("no state dict of tensors", where=str(path))
    return tensors


def _unpickle(path: Path, allow_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if allow_pickle or not (named or zipfile.is_zipfile(path)):
            raise _unreadable(path, error) from error
        what = f", {named[1]}" if named else ""
        raise StorageError(
            "a pickle of more than tensors",
            where=str(path),
            why=f"unpickling it would run code that the file names{what}; Lightning writes its "
            "configuration and callbacks so",
            fix="if you trust whoever wrote it: allow_pickle=True, --allow-pickle",
        ) from error
    except ImportError as error:
        raise StorageError(
            "the pickle needs a package that is not installed",
            where=str(path),
            why=str(error),
            fix=f"install {error.name}, or save state_dict alone where it is",
        ) from error
    except Exception as error:  # a foreign file can make the unpickler raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> StorageError:
    return StorageError(
        "the checkpoint cannot be read",
        where=str(path),
        why=_first_line(error),
        fix="the file was cut, or is no checkpoint; copy it again",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below ``prefix``, named without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def ema_name(name: str) -> str:
    """What the average of the UNet's parameter ``name`` is called in a checkpoint."""
    return EMA + "diffusion_model" + name.replace(".", "")


def with_ema(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], parameters: Collection[str]
) -> dict[str, Tensor] | None:
    """The UNet's tensors with averaged parameters, or None where the checkpoint has no averages.

    Arguments:
        weights: The UNet's tensors as they are.
        state: The whole checkpoint.
        parameters: Names of the parameters that must all have an average.

    Raises:
        ModelError: Some parameters have an average and some have not, or an average is of none.
    """
    if not any(name.startswith(EMA + "diffusion_model") for name in state):
        return None
    missing = [name for name in parameters if ema_name(name) not in state]
    if missing:
        raise ModelError(
            f"{len(missing)} parameters without an average, the first {missing[0]}",
            where=ema_name(missing[0]),
            why="the checkpoint averages other parameters, so it is of another model or cut",
            fix="the configuration that the checkpoint was trained with, or ema=False",
        )
    names = {ema_name(name): name for name in (*weights, *parameters)}
    strange = [n for n in state if n.startswith(EMA + "diffusion_model") and n not in names]
    if strange:
        raise ModelError(
            f"{len(strange)} averages of parameters that the UNet has not: {strange[0]}",
            where=EMA,
            fix="the configuration that the checkpoint was trained with, or ema=False",
        )
    return {**weights, **{names[n]: state[n] for n in names if n in state}}


def check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, where: str
) -> None:
    """Checks names and shapes before anything is loaded.

    Raises:
        ModelError: They differ; the first names of each kind are listed.
    """
    kinds = {
        "missing": [n for n in wanted if n not in found],
        "unexpected": [n for n in found if n not in wanted],
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


def check_schedule(state: Mapping[str, Tensor], alphas_cumprod: Tensor, where: str) -> None:
    """Compares the noise schedule in a checkpoint, if there is one, with the configuration's.

    A model under another schedule than its own sees noise levels that it never saw, silently.

    Raises:
        ModelError: They differ.
    """
    stored = state.get("alphas_cumprod")
    if stored is None and "betas" in state:
        stored = (1 - state["betas"].double()).cumprod(0)
    if stored is None:
        return
    same_length = stored.shape == alphas_cumprod.shape
    # The tolerance holds bfloat16: buffers may have been cast with the weights.
    if not same_length or not torch.allclose(stored.float(), alphas_cumprod, 5e-3, 1e-5):
        mine = f"{len(alphas_cumprod)} timesteps down to {float(alphas_cumprod[-1]):.3g}"
        raise ModelError(
            "the checkpoint has another noise schedule than the configuration",
            where=where,
            why=f"alphas_cumprod: {stored.numel()} timesteps down to "
            f"{float(stored.flatten()[-1]):.3g} in the checkpoint, {mine} in the configuration",
            fix="timesteps, beta_schedule, linear_start and linear_end of its training",
        )


def write_checkpoint(state: Mapping[str, Tensor], file: str | os.PathLike[str]) -> Path:
    """Writes a state dict, ``.safetensors`` or torch's format by suffix, whole or not at all."""
    path = Path(file)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    with replacing(path) as fresh:
        if path.suffix == ".safetensors":
            write_tensors(tensors, fresh, metadata={"format": "pt"})
        else:
            torch.save({"state_dict": tensors}, fresh)
    return path
