"""The keys of a latent-diffusion configuration.

    model:      target, base_learning_rate, params
      params:     of DDPM or LatentDiffusion: schedule, loss, and these nodes of {target, params}
        unet_config, first_stage_config, cond_stage_config, scheduler_config
    data:       target, params: batch_size, train, validation, ...
    lightning:  anything
    tdquant:    how to train (tdquant.files.config.training)

Configurations of other projects have keys that nothing here reads, and still load: an unknown key
is a mistake only where it is close to a known one, hence likely misspelt, or where the section has
the arguments of our own UNet. The rest are named in one warning.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022
    (https://github.com/CompVis/latent-diffusion), whose configurations these are.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from tdquant.errors import ConfigError, raise_collected
from tdquant.files.config.checking import check_keys, dotted, foreign_keys
from tdquant.files.config.training import SECTION, training_mistakes
from tdquant.models.compvis.unet import UNetModel

TOP = f"model data lightning {SECTION}"
NODE = "target params"
MODEL = "base_learning_rate target params"
MODEL_PARAMS = """
    given_betas beta_schedule timesteps linear_start linear_end cosine_s v_posterior
    parameterization clip_denoised loss_type original_elbo_weight l_simple_weight learn_logvar
    logvar_init image_size channels monitor use_ema log_every_t first_stage_key cond_stage_key
    cond_stage_trainable cond_stage_forward conditioning_key concat_mode concat_keys
    num_timesteps_cond scale_factor scale_by_std use_positional_encodings split_input_params
    ckpt_path ignore_keys load_only_unet reset_ema reset_num_ema_updates make_it_fit ucg_training
    unet_config first_stage_config cond_stage_config scheduler_config
"""
_ARGUMENTS = inspect.signature(UNetModel).parameters
UNET = " ".join(_ARGUMENTS)
UNET_REQUIRED = " ".join(k for k, found in _ARGUMENTS.items() if found.default is found.empty)
AUTOENCODER = """
    ddconfig embed_dim n_embed lossconfig monitor ckpt_path ignore_keys image_key colorize_nlabels
    scheduler_config lr_g_factor remap sane_index_shape batch_resize_range use_ema
"""
DDCONFIG_REQUIRED = "z_channels resolution in_channels out_ch ch num_res_blocks attn_resolutions"
DDCONFIG = f"""
    {DDCONFIG_REQUIRED} double_z ch_mult dropout resamp_with_conv attn_type use_linear_attn
    use_timestep tanh_out give_pre_end
"""
SCHEDULER = "warm_up_steps cycle_lengths f_start f_max f_min verbosity_interval"
SPLITS = "train validation test predict"
DATA_PARAMS = f"""
    batch_size num_workers wrap {SPLITS} shuffle_test_loader shuffle_val_dataloader
    use_worker_init_fn
"""


class _Findings:
    """Mistakes and foreign keys, collected section by section."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.foreign: list[str] = []

    def section(
        self,
        found: object,
        known: str,
        required: str = "",
        where: str = "",
        strict: bool = False,
    ) -> Mapping[str, Any]:
        """Checks a section; returns it, or an empty one where it is not a section."""
        keys = known.split()
        self.mistakes += check_keys(found, keys, required.split(), where, strict=strict)
        if not strict:
            self.foreign += foreign_keys(found, keys, where)
        return found if isinstance(found, Mapping) else {}

    def node(
        self, parent: Mapping[str, Any], key: str, where: str, required: str = "target"
    ) -> tuple[str, Mapping[str, Any]]:
        """Checks a node {target, params}; returns the two, empty where they are absent."""
        if parent.get(key) is None:
            return "", {}
        where = dotted(where, key)
        found = self.section(parent[key], NODE, required, where)
        params = found.get("params") or {}
        if not isinstance(params, Mapping):
            params = self.section(params, "", where=f"{where}.params")
        return _target(found), params


def check_latent_diffusion(config: Mapping[str, Any], where: str = "the configuration") -> None:
    """Finds every missing, misspelt or unknown key of a latent-diffusion configuration.

    Unknown keys that resemble no known one get one warning that lists them.

    Arguments:
        config: A whole configuration, from ``read_config``.
        where: Its name in messages, such as that of its file.

    Raises:
        ConfigError: Keys are missing or misspelt, or an option of training is out of range; all
            mistakes are listed.
    """
    findings = _Findings()
    top = findings.section(config, TOP, "model")
    if "model" in top:
        _model(findings, top["model"])
    if top.get("data") is not None:
        _data(findings, top["data"])
    findings.mistakes += training_mistakes(top.get(SECTION))
    raise_collected(ConfigError, findings.mistakes, where)
    if findings.foreign:
        warnings.warn(
            f"{where} has keys that tdquant does not read: {', '.join(findings.foreign)}",
            stacklevel=2,
        )


def _model(findings: _Findings, model: object) -> None:
    """Checks the section ``model`` and the nodes in it."""
    section = findings.section(model, MODEL, "params", "model")
    if "params" not in section:
        return
    where = "model.params"
    latent = _target(section).endswith("LatentDiffusion")
    required = "unet_config first_stage_config" if latent else "unet_config"
    params = findings.section(section["params"], MODEL_PARAMS, required, where)
    target, unet = findings.node(params, "unet_config", where, NODE)
    if target:
        # A UNet of another class has a constructor of its own: only likely slips count there.
        ours = target.endswith("UNetModel")
        findings.section(
            unet, UNET, UNET_REQUIRED if ours else "", f"{where}.unet_config.params", strict=ours
        )
    target, stage = findings.node(params, "first_stage_config", where)
    if "Autoencoder" in target or "VQModel" in target:
        inside = f"{where}.first_stage_config.params"
        stage = findings.section(stage, AUTOENCODER, "ddconfig embed_dim", inside)
        if "ddconfig" in stage:
            findings.section(stage["ddconfig"], DDCONFIG, DDCONFIG_REQUIRED, f"{inside}.ddconfig")
    # "__is_first_stage__" and "__is_unconditional__" stand for a node.
    if not isinstance(params.get("cond_stage_config"), str):
        findings.node(params, "cond_stage_config", where)
    target, scheduler = findings.node(params, "scheduler_config", where)
    if target:
        findings.section(scheduler, SCHEDULER, "", f"{where}.scheduler_config.params")


def _data(findings: _Findings, data: object) -> None:
    """Checks the section ``data``; what a data set takes is the data set's to check."""
    section = findings.section(data, NODE, "params", "data")
    if "params" not in section:
        return
    params = findings.section(section["params"], DATA_PARAMS, "", "data.params")
    for key, low in (("batch_size", 1), ("num_workers", 0)):
        value = params.get(key)
        if value is not None and (type(value) is not int or value < low):
            findings.mistakes.append(f"data.params.{key}={value!r}: a whole number from {low}")
    for split in SPLITS.split():
        findings.node(params, split, "data.params")


def _target(node: Mapping[str, Any]) -> str:
    return str(node.get("target") or "")
