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
from tdquant.files.config.checking import check_keys, foreign_keys
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


class _Check:
    """Checks sections and nodes of a configuration by their paths; collects what it finds."""

    def __init__(self, config: object) -> None:
        self.config = config
        self.mistakes: list[str] = []
        self.foreign: list[str] = []

    def at(self, path: str) -> Any:
        """What stands at a path, None where nothing does."""
        found = self.config
        for key in filter(None, path.split(".")):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def section(self, path: str, known: str, required: str = "", strict: bool = False) -> None:
        """Checks a section; one that is absent is a mistake in the section above."""
        found, keys = self.at(path), known.split()
        if found is None and path:
            return
        self.mistakes += check_keys(found, keys, required.split(), path, strict=strict)
        if not strict:
            self.foreign += foreign_keys(found, keys, path)

    def node(self, path: str, required: str = "target") -> str:
        """Checks a node {target, params}; returns its target, empty where it is absent."""
        self.section(path, NODE, required)
        if not isinstance(self.at(f"{path}.params"), Mapping):
            self.section(f"{path}.params", "")
        return str(self.at(f"{path}.target") or "")


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
    check = _Check(config)
    check.section("", TOP, "model")
    _check_model(check)
    check.section("data", NODE, "params")
    check.section("data.params", DATA_PARAMS)
    for key, low in (("batch_size", 1), ("num_workers", 0)):
        value = check.at(f"data.params.{key}")
        if value is not None and (type(value) is not int or value < low):
            check.mistakes.append(f"data.params.{key}={value!r}: a whole number from {low}")
    for split in SPLITS.split():  # what a data set takes, it checks itself
        check.node(f"data.params.{split}")
    check.mistakes += training_mistakes(check.at(SECTION))
    raise_collected(ConfigError, dict.fromkeys(check.mistakes), where)
    if check.foreign:
        warnings.warn(
            f"{where} has keys that tdquant does not read: {', '.join(check.foreign)}",
            stacklevel=2,
        )


def _check_model(check: _Check) -> None:
    params = "model.params"
    latent = str(check.at("model.target")).endswith("LatentDiffusion")
    check.section("model", MODEL, "params")
    check.section(params, MODEL_PARAMS, "unet_config" + " first_stage_config" * latent)
    target = check.node(f"{params}.unet_config", NODE)
    if target:
        # A UNet of another class has arguments of its own: only likely slips count there.
        ours = target.endswith("UNetModel")
        required = UNET_REQUIRED if ours else ""
        check.section(f"{params}.unet_config.params", UNET, required, strict=ours)
    stage = f"{params}.first_stage_config"
    target = str(check.at(f"{stage}.target"))
    if "Autoencoder" in target or "VQModel" in target:
        check.node(stage, NODE)
        check.section(f"{stage}.params", AUTOENCODER, "ddconfig embed_dim")
        check.section(f"{stage}.params.ddconfig", DDCONFIG, DDCONFIG_REQUIRED)
    else:
        check.node(stage)
    # "__is_first_stage__" and "__is_unconditional__" stand for a node.
    if not isinstance(check.at(f"{params}.cond_stage_config"), str):
        check.node(f"{params}.cond_stage_config")
    if check.node(f"{params}.scheduler_config"):
        check.section(f"{params}.scheduler_config.params", SCHEDULER)
