"""``load_compvis``: a latent-diffusion configuration and checkpoint as a Pipe.

The configuration says what to build, in its published YAML format; the checkpoint fills it. A
checkpoint that the authors of TDQ wrote makes quantized layers (``published``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tdquant.config import check_latent_diffusion, read_config
from tdquant.errors import ModelError
from tdquant.models.compvis import checkpoint as files
from tdquant.models.compvis import published
from tdquant.models.compvis.autoencoder import build_first_stage, from_published
from tdquant.models.compvis.unet import UNetModel
from tdquant.models.pipe import Pipe
from tdquant.optional import require

FIRST_STAGES = ("AutoencoderKL", "VQModelInterface", "VQModel")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")

UNNAMED = "the configuration"
"""What a configuration is called that is no file."""

Config = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any]


def load_compvis(
    config: Config,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    ema: bool = True,
    allow_pickle: bool = False,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Pipe:
    """Builds a latent-diffusion model from its configuration and fills it from a checkpoint.

    Arguments:
        config: YAML file or files, or the configuration itself, a mapping or OmegaConf's.
        checkpoint: ``.ckpt`` or ``.safetensors`` file; None leaves the model as initialised. With
            the layers of TDQ's authors in it, the UNet comes quantized, its scales in place.
        ema: Take averaged parameters where the checkpoint has them.
        allow_pickle: Let a ``.ckpt`` run the code that it names. Only for files that you trust.
        overrides: ``key.path=value`` changes to the configuration.
        quiet: Do not warn of what is left out or stays untrained.

    Returns:
        The UNet and first stage in evaluation mode, on the CPU, in float32, and a DDIM scheduler
        on the configuration's noise schedule. The first stage is None for a pixel model.

    Raises:
        ConfigError: The configuration is missing, malformed, or has wrong keys.
        ModelError: It asks for what does not exist, contradicts itself, or the checkpoint does
            not fit it.
        StorageError: The checkpoint cannot be read, or only by running its code.
        MissingDependencyError: diffusers or omegaconf is not installed.
    """
    require("diffusers", "diffusers")
    from tdquant.diffusion.ddim import make_ddim

    conf, where = _configuration(config, overrides)
    check_latent_diffusion(conf, where)
    params = conf["model"]["params"]
    scheduler = make_ddim(params)
    unet = _unet(params["unet_config"])
    source = where if checkpoint is None else str(checkpoint)
    state = {} if checkpoint is None else files.read_checkpoint(checkpoint, allow_pickle)
    notes: list[str] = []
    if state:
        files.check_schedule(state, scheduler.alphas_cumprod, source)
        times = (0.0, float(len(scheduler.alphas_cumprod) - 1))
        _fill_unet(unet, state, ema, times, source, notes)
        if any(name.startswith(files.CONDITION) for name in state):
            notes.append(
                f"the conditioning stage ({files.CONDITION}*) is left out; pass its output to the "
                "UNet as context= or y="
            )
    # A factor measured in training (scale_by_std) is stored with the weights.
    factor = float(state.get("scale_factor", params.get("scale_factor", 1.0)))
    stage = params.get("first_stage_config")
    vae = _first_stage(stage, state, factor, source, allow_pickle, notes) if stage else None
    for note in () if quiet else notes:
        warnings.warn(f"{source}: {note}", stacklevel=2)
    options = unet.config
    size = options["image_size"]
    sides = tuple(size) if isinstance(size, list) else (size,) * options["dims"]
    shape = (options["in_channels"], *sides)
    name = "compvis" if source == UNNAMED else Path(source).stem
    return Pipe(unet.eval(), vae, scheduler, shape, name, factor)


def _configuration(config: Config, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The configuration as dictionaries and lists, and what to call it."""
    if isinstance(config, (str, os.PathLike)):
        return read_config(config, overrides), str(config)
    if not isinstance(config, Mapping) and not hasattr(config, "_metadata"):
        return read_config(config, overrides), " + ".join(map(str, config))
    if type(config) is dict and not overrides:
        return config, UNNAMED
    conf = require("omegaconf", "train").OmegaConf
    changes = [text.removeprefix("--") for text in overrides]
    merged = conf.merge(conf.create(config), conf.from_dotlist(changes))
    return conf.to_container(merged, resolve=True), UNNAMED


def _unet(node: Mapping[str, Any]) -> UNetModel:
    target = str(node["target"])
    if target.rpartition(".")[2] != "UNetModel":
        raise ModelError(
            f"no UNet class {target}", where="model.params.unet_config", fix="...UNetModel"
        )
    return UNetModel(**node["params"])


def _fill_unet(
    unet: UNetModel,
    state: Mapping[str, Tensor],
    ema: bool,
    times: tuple[float, float],
    where: str,
    notes: list[str],
) -> None:
    """Loads the UNet, quantizing it first if the checkpoint is of a quantized one."""
    weights = files.below(state, files.UNET)
    if not weights and not any(name.startswith(files.EMA) for name in state):
        first = ", ".join(list(state)[:3])
        raise ModelError(
            f"no tensors named {files.UNET}*", where=where, why=f"its first ones are {first}"
        )
    quantized = published.is_quantized(weights)
    if quantized:
        published.quantize(unet, weights, times, where)
    elif weights:
        files.check_fit(weights, unet.state_dict(), "UNet", where)
    parameters = published.names(unet).values()
    averaged = files.with_ema(weights, state, parameters) if ema else None
    if ema and averaged is None:
        notes.append(
            f"no averaged parameters ({files.EMA}*); the UNet has the raw ones, which sample worse"
        )
    weights = weights if averaged is None else averaged
    if quantized:
        weights = published.to_own(unet, weights, where)
    files.check_fit(weights, unet.state_dict(), "UNet", where)
    unet.load_state_dict(weights)


def _first_stage(
    node: Mapping[str, Any],
    state: Mapping[str, Tensor],
    factor: float,
    where: str,
    allow_pickle: bool,
    notes: list[str],
) -> nn.Module | None:
    """The first stage, filled from the checkpoint, else from the file that its node names."""
    kind = str(node["target"]).rpartition(".")[2]
    if kind == "IdentityFirstStage":
        return None
    if kind not in FIRST_STAGES:
        raise ModelError(
            f"no first stage {node['target']}",
            where="model.params.first_stage_config",
            fix=f"one of {', '.join(FIRST_STAGES)}, IdentityFirstStage",
        )
    params = node["params"]
    vae = build_first_stage(kind, params, factor)
    tensors = files.below(state, files.FIRST_STAGE)
    path = params.get("ckpt_path")
    if not tensors and path and Path(path).is_file():
        tensors, where = files.read_checkpoint(path, allow_pickle), str(path)
    elif not tensors and not state:
        missing = f"; there is no file {path}" if path else ""
        notes.append("the first stage is untrained" + missing)
        return vae
    tensors = {k: v for k, v in tensors.items() if k.startswith(_PARTS)}
    renamed = from_published(vae, tensors)
    files.check_fit(renamed, vae.state_dict(), "first stage", where)
    vae.load_state_dict(renamed)
    return vae
