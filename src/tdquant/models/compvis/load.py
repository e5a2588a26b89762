"""``load_compvis``: a latent-diffusion configuration and checkpoint as a Pipe.

The configuration says what to build, in its published YAML format; the checkpoint fills it. A
checkpoint that the authors of TDQ wrote makes quantized layers (``published``).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdquant.errors import ModelError, TDQError, first_line
from tdquant.files.checkpoints import open_checkpoint
from tdquant.files.checkpoints.tensors import fill_module
from tdquant.files.config import read_config
from tdquant.files.looking import is_file
from tdquant.models.compvis import checkpoint as files
from tdquant.models.compvis import published
from tdquant.models.compvis.autoencoder import build_first_stage, from_published
from tdquant.models.compvis.configuration import check_latent_diffusion
from tdquant.models.compvis.text import load_text_encoder
from tdquant.models.compvis.unet import UNetModel
from tdquant.models.pipe import Pipe
from tdquant.support.optional import require

FIRST_STAGES = ("AutoencoderKL", "VQModelInterface", "VQModel")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")

UNNAMED = "the configuration"
"""Name of a configuration that is not a file."""

Config = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any]


def load_compvis(
    config: Config,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    ema: bool = True,
    overrides: Sequence[str] = (),
    text_encoder: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Pipe:
    """Builds a latent-diffusion model from its configuration and fills it from a checkpoint.

    Arguments:
        config: YAML file or files, or the configuration itself, a mapping or OmegaConf's.
        checkpoint: ``.safetensors`` file, or one of ``torch.save`` (``.ckpt``, ``.pt``, ``.pth``,
            ``.bin``), of latent diffusion or Stable Diffusion 1. None leaves the model as
            initialised. If it has the layers of TDQ's authors, the UNet is quantized, with their
            scales. Nothing that a pickle names is imported or called.
        ema: Take averaged parameters where the checkpoint has them.
        overrides: ``key.path=value`` changes to the configuration.
        text_encoder: Folder of the CLIP text encoder and tokenizer of a text-to-image model, as
            transformers or diffusers saves them.
        quiet: Do not warn about what is left out or stays untrained.

    Returns:
        The UNet and first stage in evaluation mode, on the CPU, in float32, and a DDIM scheduler
        on the configuration's noise schedule. The first stage is None for a pixel model. The
        factor of the latents is the checkpoint's ``scale_factor``, else the configuration's; it is
        None for an untrained model whose configuration says ``scale_by_std``.

    Raises:
        ConfigError: The configuration is missing, malformed, or has wrong keys.
        ModelError: The configuration names what does not exist or contradicts itself, the
            checkpoint does not fit it, or neither has the factor of the latents.
        StorageError: The checkpoint cannot be read.
        MissingDependencyError: diffusers or omegaconf is not installed, or transformers for a
            text encoder.
    """
    require("diffusers", "diffusers")
    from tdquant.diffusion.ddim import make_ddim

    conf, where = _configuration(config, overrides)
    check_latent_diffusion(conf, where)
    params = conf["model"]["params"]
    with _building("", "timesteps, beta_schedule, linear_start, linear_end, given_betas"):
        scheduler = make_ddim(params)
    source = where if checkpoint is None else str(checkpoint)
    kind, condition = _first_stage_kind(params), params.get("cond_stage_config")
    notes: list[str] = []
    opened: AbstractContextManager[files.State] = nullcontext({})
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint)
    with opened as state:
        if state:
            files.check_schedule(state, scheduler.alphas_cumprod, source)
        times = (0.0, float(len(scheduler.alphas_cumprod) - 1))
        unet = _unet(params, state, ema, times, source, notes)
        factor: float | None = 1.0
        vae = None
        if kind is not None:
            factor = files.latent_factor(params, state, source)
            vae = _first_stage(kind, params["first_stage_config"], state, factor, source, notes)
        skipped = any(name.startswith(files.CONDITION) for name in state)
    encoder = None
    if text_encoder is not None:
        encoder = load_text_encoder(condition, text_encoder)
    elif skipped:
        notes.append(
            f"the conditioning stage ({_named(condition)}, {files.CONDITION}*) is left out; pass "
            "its output to the UNet as context= or y="
        )
    for note in () if quiet else notes:
        warnings.warn(f"{source}: {note}", stacklevel=2)
    shape = _sample_shape(unet.config, params)
    name = "compvis" if source == UNNAMED else Path(source).stem
    return Pipe(unet.eval(), vae, scheduler, shape, name, factor, encoder)


def _configuration(config: Config, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The configuration as dictionaries and lists, and its name in messages."""
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


@contextlib.contextmanager
def _building(node: str, options: str = "") -> Iterator[None]:
    """Turns the errors of wrong types and sizes in a configuration into one."""
    try:
        yield
    except TDQError:
        raise
    except Exception as error:  # constructors of layers raise anything
        raise ModelError(
            "the configuration cannot be built",
            where=f"model.params.{node}.params" if node else "model.params",
            why=first_line(error),
            fix=f"types and ranges of {options}" if options else "types and ranges of its options",
        ) from error


def _sample_shape(options: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one sample: the UNet's, as in published samplers. For text-to-image models it is
    that of ``model.params.image_size``.
    """
    size = options["image_size"]
    if options["context_dim"] is not None:
        size = params.get("image_size", size)
    sides = tuple(size) if isinstance(size, list) else (size,) * options["dims"]
    return options["in_channels"], *sides


def _named(condition: object) -> str:
    """The name of a configuration's conditioning stage, in words."""
    target = condition.get("target") if isinstance(condition, Mapping) else condition
    name = str(target or "unnamed").rpartition(".")[2]
    return f"the CLIP text encoder {name}" if "CLIP" in name else name


def _unet(
    params: Mapping[str, Any],
    state: files.State,
    ema: bool,
    times: tuple[float, float],
    where: str,
    notes: list[str],
) -> UNetModel:
    """The UNet, filled from a checkpoint if there is one, and quantized if that is."""
    node = params["unet_config"]
    target = str(node["target"])
    if target.rpartition(".")[2] != "UNetModel":
        raise ModelError(
            f"no UNet class {target}", where="model.params.unet_config", fix="...UNetModel"
        )
    with _building("unet_config"), torch.device("meta" if state else "cpu"):
        unet = UNetModel(**node["params"])
    if not state:
        return unet
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
    averaged = files.with_ema(weights, state, parameters, where) if ema else None
    if ema and averaged is None and params.get("use_ema", True):
        notes.append(
            f"no averaged parameters ({files.EMA}*); the UNet has the raw ones, which sample worse"
        )
    weights = weights if averaged is None else averaged
    if quantized:
        weights = published.to_own(unet, weights, where)
    files.check_fit(weights, dict(unet.named_parameters()), "UNet", where)
    fill_module(unet, weights)
    return unet


def _first_stage_kind(params: Mapping[str, Any]) -> str | None:
    """Class of the first stage, or None for a pixel model.

    Raises:
        ModelError: No such class.
    """
    node = params.get("first_stage_config")
    kind = str(node["target"]).rpartition(".")[2] if node else "IdentityFirstStage"
    if kind not in (*FIRST_STAGES, "IdentityFirstStage"):
        raise ModelError(
            f"no first stage {kind}",
            where="model.params.first_stage_config",
            fix=f"one of {', '.join(FIRST_STAGES)}, IdentityFirstStage",
        )
    return kind if kind in FIRST_STAGES else None


def _first_stage(
    kind: str,
    node: Mapping[str, Any],
    state: files.State,
    factor: float | None,
    where: str,
    notes: list[str],
) -> nn.Module:
    """The first stage, filled from the checkpoint, else from the file that its node names."""
    params = node["params"]
    tensors, path = files.below(state, files.FIRST_STAGE), params.get("ckpt_path")
    own = not tensors and path and is_file(path)
    if not tensors and not own:
        missing = f"there is no file {path}" if path else "its node names no ckpt_path"
        if state:
            raise ModelError(
                f"no first stage: no tensors named {files.FIRST_STAGE}*",
                where=where,
                why=f"the configuration has one, and {missing}",
                fix="model.params.first_stage_config.params.ckpt_path=FILE, a checkpoint of it",
            )
        notes.append(f"the first stage is untrained; {missing}")
        with _building("first_stage_config"):
            return build_first_stage(kind, params, factor)
    with _building("first_stage_config"), torch.device("meta"):
        vae = build_first_stage(kind, params, factor)
    with open_checkpoint(path) if own else nullcontext(tensors) as tensors:
        where = str(path) if own else where
        tensors = {k: v for k, v in tensors.items() if k.startswith(_PARTS)}
        quantizes = any(name.startswith("quantize.") for name in tensors)
        if quantizes == (kind == "AutoencoderKL"):
            raise ModelError(
                f"the first stage in the checkpoint is {'a VQ' if quantizes else 'a KL'} model",
                where=where,
                why=f"the configuration describes {node['target']}",
                fix="the configuration that the checkpoint was trained with",
            )
        renamed = from_published(vae, tensors)
        files.check_fit(renamed, vae.state_dict(), "first stage", where)
        fill_module(vae, renamed)
    return vae
