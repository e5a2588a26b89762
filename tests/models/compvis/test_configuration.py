import warnings
from copy import deepcopy
from pathlib import Path

import pytest

from tdquant.errors import ConfigError
from tdquant.files.config import read_config, training_options
from tdquant.lab.data import dataset_from_config
from tdquant.models.compvis.configuration import check_latent_diffusion

CONFIGS = Path(__file__).parents[3] / "configs"
SHIPPED = sorted(p.name for p in CONFIGS.glob("*.yaml"))

# Millions of parameters that the UNets of these configurations are known or computed to have.
MILLIONS = {
    "lsun_churches-ldm-kl-8.yaml": (280, 310),
    "lsun_churches-ldm-kl-8-compvis.yaml": (280, 310),
    "stable-diffusion-v1.yaml": (859, 860),
    "txt2img-1p4B.yaml": (872, 873),
    "cifar10-ddpm.yaml": (33, 38),
    "cats-ldm.yaml": (2, 8),
    "cats-ddpm.yaml": (0.5, 2),
}


@pytest.fixture
def churches():
    return read_config(CONFIGS / "lsun_churches-ldm-kl-8.yaml")


def mistakes(config):
    with pytest.raises(ConfigError) as caught:
        check_latent_diffusion(config)
    return str(caught.value)


def test_every_shipped_configuration_is_known_here():
    assert sorted(MILLIONS) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_in_order(name):
    config = read_config(CONFIGS / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_latent_diffusion(config, name)
    options = training_options(config)
    params = config["model"]["params"]
    unet = params["unet_config"]["params"]
    assert options["steps"] > options["warmup"]
    assert unet["image_size"] == params["image_size"]
    assert unet["in_channels"] == unet["out_channels"] == params["channels"]
    if "first_stage_config" in params:
        stage = params["first_stage_config"]["params"]
        halvings = len(stage["ddconfig"]["ch_mult"]) - 1
        assert stage["ddconfig"]["resolution"] >> halvings == params["image_size"]
        assert stage["embed_dim"] == params["channels"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_unets_have_the_size_that_is_published(name):
    compvis = pytest.importorskip("tdquant.models.compvis")
    import torch

    params = read_config(CONFIGS / name)["model"]["params"]["unet_config"]["params"]
    with torch.device("meta"):
        unet = compvis.UNetModel(**params)
    low, high = MILLIONS[name]
    assert low < sum(p.numel() for p in unet.parameters()) / 1e6 < high


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("cats")])
def test_the_cats_of_the_configurations_can_be_made(name):
    config = read_config(CONFIGS / name, ["data.params.validation.params.count=5"])
    cats = dataset_from_config(config["data"]["params"]["validation"], "data.params.validation")
    assert cats[0].shape == (3, 32, 32)
    assert len(cats) == 5


def test_all_mistakes_of_all_sections_are_told_at_once(churches):
    params = churches["model"]["params"]
    params["unet_config"]["params"]["chanel_mult"] = [1]
    params["unet_config"]["params"]["colour"] = 1
    del params["unet_config"]["params"]["out_channels"]
    del params["first_stage_config"]["params"]["ddconfig"]["z_channels"]
    params["linear_strat"] = 1
    churches["data"]["params"]["batchsize"] = 3
    del churches["data"]["params"]["train"]["target"]
    churches["tdquant"]["steps"] = 0
    text = mistakes(churches)
    for line in (
        "8 mistakes",
        "model.params.unet_config.params.chanel_mult: no such key; nearest: channel_mult",
        "model.params.unet_config.params.colour: no such key; one of",
        "model.params.unet_config.params.out_channels: missing",
        "model.params.first_stage_config.params.ddconfig.z_channels: missing",
        "model.params.linear_strat: no such key; nearest: linear_start",
        "data.params.batchsize: no such key; nearest: batch_size",
        "data.params.train.target: missing",
        "tdquant.steps=0",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model", "model: missing"),
        ("model.params", "model.params: missing"),
        ("model.params.unet_config", "unet_config: missing"),
        ("model.params.unet_config.target", "unet_config.target: missing"),
        ("model.params.unet_config.params", "unet_config.params: missing"),
        ("model.params.first_stage_config", "first_stage_config: missing"),
        ("model.params.first_stage_config.params", "first_stage_config.params: missing"),
    ],
)
@pytest.mark.parametrize("how", ["absent", "null"])
def test_what_must_be_there(churches, path, message, how):
    *parents, last = path.split(".")
    section = churches
    for key in parents:
        section = section[key]
    if how == "absent":
        del section[last]
    else:
        section[last] = None
    assert message in mistakes(churches)


@pytest.mark.parametrize(
    "path", ["model", "model.params", "model.params.unet_config.params", "data.params.train"]
)
def test_sections_that_are_none(churches, path):
    *parents, last = path.split(".")
    section = churches
    for key in parents:
        section = section[key]
    section[last] = [1, 2]
    assert f"{path}: a section of keys is needed" in mistakes(churches)


def test_a_pixel_model_needs_no_first_stage(churches):
    churches["model"]["target"] = "ldm.models.diffusion.ddpm.DDPM"
    del churches["model"]["params"]["first_stage_config"]
    del churches["data"]
    check_latent_diffusion(churches)
    churches["model"]["target"] = "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert "first_stage_config" in mistakes(churches)


def test_foreign_keys_load_with_one_warning(churches):
    foreign = deepcopy(churches)
    foreign["model"]["params"]["eval_name"] = "x"
    foreign["data"]["params"]["prefetch"] = 2
    foreign["wandb"] = {}
    with pytest.warns(UserWarning, match="does not read") as caught:
        check_latent_diffusion(foreign)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "model.params.eval_name" in text
    assert "data.params.prefetch" in text
    assert "wandb" in text


def test_a_foreign_unet_has_keys_of_its_own(churches):
    unet = churches["model"]["params"]["unet_config"]
    unet["target"] = "other.DiT"
    unet["params"] = {"depth": 28, "patch": 2}
    with pytest.warns(UserWarning, match="depth"):
        check_latent_diffusion(churches)


def test_conditional_configurations(churches):
    params = churches["model"]["params"]
    params["cond_stage_config"] = {"target": "torch.nn.Identity"}
    params["scheduler_config"] = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {"warm_up_steps": [1], "cycle_lengths": [10], "f_strat": [1]},
    }
    text = mistakes(churches)
    assert "1 mistake " in text
    assert "f_strat: no such key; nearest: f_start" in text
