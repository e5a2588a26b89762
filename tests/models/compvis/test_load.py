import json
import warnings

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ConfigError, ModelError, StorageError
from tests.files.checkpoints.lightning import write_lightning
from tests.models.compvis.emulation import FirstStage, UNet
from tests.models.compvis.examples import (
    KL,
    KL_NODE,
    LATENT,
    UNET,
    VQ_NODE,
    checkpoint,
    config,
    inputs,
    node,
    read,
    stage,
    weights,
    write,
)


def yaml(path, conf):
    path.write_text(json.dumps(conf))  # JSON is YAML
    return path


def outputs(pipe, seed=0):
    x, t, *_ = inputs(pipe.unet.config, seed=seed)
    with torch.no_grad():
        return x, t, pipe.unet(x, t)


def close(found, expected):
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_pixel_model(tmp_path, suffix):
    raw = weights()
    file = write(tmp_path / f"last{suffix}", checkpoint(raw, ema=weights(seed=1)))
    path = yaml(tmp_path / "cifar.yaml", config())
    for ema, state in ((True, weights(seed=1)), (False, raw)):
        pipe = tdq.models.load_compvis(path, file, ema=ema)
        x, t, found = outputs(pipe)
        assert close(found, UNet(UNET, state)(x, t))
    assert pipe.vae is None
    assert pipe.shape == (3, 8, 8)
    assert pipe.name == "last"
    assert not pipe.unet.training
    assert float(pipe.scheduler.betas[0]) == pytest.approx(0.0015)


@pytest.mark.parametrize("of", [KL_NODE, VQ_NODE], ids=["KL", "VQ"])
def test_a_latent_model(tmp_path, of):
    unet = LATENT if of is KL_NODE else UNET
    state, inner = weights(unet), stage(of)
    more = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    file = write(tmp_path / "ldm.ckpt", checkpoint(state, inner | more, ema=state))
    pipe = tdq.models.load_compvis(config(unet, of, scale_factor=0.22), file)
    assert pipe.scale_factor == pipe.vae.config.scaling_factor == 0.22
    theirs = FirstStage(of["params"]["ddconfig"], inner)
    z = torch.randn(2, *pipe.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert close(pipe.decode(z), theirs.decode(z / 0.22))
        assert pipe.encode(torch.rand(1, 3, 32, 32)).shape[1] == pipe.shape[0]


def test_forms_of_a_configuration(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    conf = config()
    file = write(tmp_path / "m.safetensors", checkpoint(weights(), ema=weights()))
    path = yaml(tmp_path / "c.yaml", conf)
    forms = [path, str(path), [path], conf, omegaconf.OmegaConf.create(conf)]
    found = [outputs(tdq.models.load_compvis(form, file))[2] for form in forms]
    assert all(torch.equal(f, found[0]) for f in found)


@pytest.mark.parametrize("form", ["path", "mapping"])
def test_overrides(tmp_path, form):
    given = config() if form == "mapping" else yaml(tmp_path / "c.yaml", config())
    change = "model.params.unet_config.params.image_size=16"
    pipe = tdq.models.load_compvis(given, overrides=[change, "model.params.timesteps=50"])
    assert pipe.shape == (3, 16, 16)
    assert len(pipe.scheduler.betas) == 50


def test_without_a_checkpoint_the_model_is_fresh():
    with pytest.warns(UserWarning, match="first stage is untrained"):
        pipe = tdq.models.load_compvis(config(LATENT, KL_NODE))
    assert not outputs(pipe)[2].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tdq.models.load_compvis(config()).name == "compvis"
        tdq.models.load_compvis(config(LATENT, KL_NODE), quiet=True)


def test_the_first_stage_of_a_fresh_model_comes_from_its_own_file(tmp_path):
    inner = stage(KL_NODE)
    path = write(tmp_path / "kl.ckpt", inner)
    of = node("autoencoder.AutoencoderKL", **KL_NODE["params"], ckpt_path=str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = tdq.models.load_compvis(config(LATENT, of))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert close(pipe.decode(z), FirstStage(KL, inner).decode(z))


def test_identity_first_stage():
    assert (
        tdq.models.load_compvis(config(UNET, node("autoencoder.IdentityFirstStage"))).vae is None
    )


def test_a_measured_factor_wins(tmp_path):
    state = checkpoint(weights(LATENT), stage(KL_NODE), scale_factor=torch.tensor(0.75))
    conf = config(LATENT, KL_NODE, scale_by_std=True, scale_factor=1.0)
    with pytest.warns(UserWarning, match="no averaged parameters"):
        pipe = tdq.models.load_compvis(conf, write(tmp_path / "m.ckpt", state))
    assert pipe.scale_factor == pipe.vae.config.scaling_factor == 0.75


def latent_state(**more):
    return checkpoint(weights(LATENT), stage(KL_NODE), ema=weights(LATENT), **more)


@pytest.mark.parametrize(
    ("stored", "given", "by_std", "factor"),
    [
        (0.75, None, True, 0.75),
        (0.75, 0.5, True, 0.75),
        (0.75, 0.5, False, 0.75),
        (None, 0.5, True, 0.5),
        (None, 0.5, False, 0.5),
        (None, None, False, 1.0),
        (None, None, True, None),
    ],
)
def test_where_the_factor_of_the_latents_comes_from(tmp_path, stored, given, by_std, factor):
    more = {} if stored is None else {"scale_factor": torch.tensor(stored)}
    params = {} if given is None else {"scale_factor": given}
    conf = config(LATENT, KL_NODE, scale_by_std=by_std, **params)
    file = write(tmp_path / "m.ckpt", latent_state(**more))
    if factor is not None:
        pipe = tdq.models.load_compvis(conf, file)
        assert pipe.scale_factor == pipe.vae.config.scaling_factor == factor
        return
    with pytest.raises(ModelError, match=r"factor of the latents(.|\n)*0\.2458") as error:
        tdq.models.load_compvis(conf, file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("value", [0.0, -0.2, float("nan"), float("inf")])
def test_factors_that_are_none(tmp_path, value):
    file = write(tmp_path / "m.ckpt", latent_state(scale_factor=torch.tensor(value)))
    with pytest.raises(ModelError, match="scale_factor="):
        tdq.models.load_compvis(config(LATENT, KL_NODE), file)
    file = write(tmp_path / "n.ckpt", latent_state(scale_factor=torch.ones(2)))
    with pytest.raises(ModelError, match="scale_factor="):
        tdq.models.load_compvis(config(LATENT, KL_NODE), file)
    file = write(tmp_path / "o.ckpt", latent_state())
    with pytest.raises(ModelError, match="scale_factor="):
        tdq.models.load_compvis(config(LATENT, KL_NODE, scale_factor=value), file)


def test_an_untrained_model_has_no_factor_until_it_is_measured():
    pipe = tdq.models.load_compvis(config(LATENT, KL_NODE, scale_by_std=True), quiet=True)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    assert pipe.scale_factor is None
    for call in (lambda: pipe.encode(images), lambda: pipe.decode(torch.zeros(1, *pipe.shape))):
        with pytest.raises(ModelError, match="factor of the latents is not known"):
            call()
    measured = pipe.with_measured_factor(images)
    with torch.no_grad():
        assert float(measured.encode(images).std()) == pytest.approx(1, rel=1e-5)
    assert measured.vae.config.scaling_factor == measured.scale_factor
    pixels = tdq.models.load_compvis(config())
    with pytest.raises(ModelError, match="no latents"):
        pixels.with_measured_factor(images)


def test_a_first_stage_of_another_kind(tmp_path):
    for own, other in ((KL_NODE, VQ_NODE), (VQ_NODE, KL_NODE)):
        unet = LATENT if other is KL_NODE else UNET
        state = checkpoint(weights(unet), stage(own), ema=weights(unet))
        kind = "a KL" if own is KL_NODE else "a VQ"
        with pytest.raises(ModelError, match=f"checkpoint is {kind} model"):
            tdq.models.load_compvis(config(unet, other), write(tmp_path / "m.ckpt", state))


def test_where_a_first_stage_was_looked_for(tmp_path):
    file = write(tmp_path / "m.ckpt", checkpoint(weights(LATENT), ema=weights(LATENT)))
    lost = node("autoencoder.AutoencoderKL", **KL_NODE["params"], ckpt_path="gone/kl.ckpt")
    with pytest.raises(ModelError, match=r"there is no file gone/kl\.ckpt"):
        tdq.models.load_compvis(config(LATENT, lost), file)
    path = write(tmp_path / "kl.ckpt", stage(KL_NODE))
    found = node("autoencoder.AutoencoderKL", **KL_NODE["params"], ckpt_path=str(path))
    assert tdq.models.load_compvis(config(LATENT, found), file).vae is not None


def test_what_the_configuration_averages_not_is_not_missed(tmp_path):
    file = write(tmp_path / "m.ckpt", checkpoint(weights()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, t, found = outputs(tdq.models.load_compvis(config(use_ema=False), file))
    assert close(found, UNet(UNET, weights())(x, t))


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_lightning_files(tmp_path, options):
    state = checkpoint(weights(), ema=weights(seed=1))
    parallel = {f"module.{k}": v for k, v in state.items()}
    for name, content in (("m.ckpt", state), ("parallel.ckpt", parallel)):
        file = write_lightning(tmp_path / name, content, **options)
        x, t, found = outputs(tdq.models.load_compvis(config(), file))
        assert close(found, UNet(UNET, weights(seed=1))(x, t))


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    file = write(tmp_path / "m.ckpt", latent_state())
    before = torch.random.get_rng_state()
    tdq.models.load_compvis(config(LATENT, KL_NODE, scale_factor=0.5), file)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_half_precision_tensors(tmp_path):
    state = checkpoint(weights(), ema=weights())
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    half["alphas_cumprod"] = tdq.models.load_compvis(config()).scheduler.alphas_cumprod.bfloat16()
    pipe = tdq.models.load_compvis(config(), write(tmp_path / "m.safetensors", half))
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    x, t, found = outputs(pipe)
    assert close(found, UNet(UNET, {k: v.bfloat16().float() for k, v in weights().items()})(x, t))


def test_averages_alone_are_enough(tmp_path):
    state = checkpoint({}, ema=weights(seed=1))
    pipe = tdq.models.load_compvis(config(), write(tmp_path / "m.ckpt", state))
    x, t, found = outputs(pipe)
    assert close(found, UNet(UNET, weights(seed=1))(x, t))


def test_no_averages_are_said_to_be_missing(tmp_path):
    file = write(tmp_path / "m.ckpt", checkpoint(weights()))
    with pytest.warns(UserWarning, match="no averaged parameters"):
        found = outputs(tdq.models.load_compvis(config(), file))[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = outputs(tdq.models.load_compvis(config(), file, ema=False))[2]
    assert torch.equal(found, raw)
    assert found.any()


def test_averages_of_some_parameters(tmp_path):
    state = checkpoint(weights(), ema=weights(seed=1))
    del state["model_ema.diffusion_modelmiddle_block1qkvweight"]
    file = write(tmp_path / "m.ckpt", state)
    with pytest.raises(ModelError, match=r"middle_block\.1\.qkv\.weight: no average"):
        tdq.models.load_compvis(config(), file)
    tdq.models.load_compvis(config(), file, ema=False)


def test_a_conditioning_stage_is_left_out_and_said_so(tmp_path):
    state = checkpoint(weights(), ema=weights(), **{"cond_stage_model.a": torch.zeros(1)})
    with pytest.warns(UserWarning, match="conditioning stage"):
        tdq.models.load_compvis(config(), write(tmp_path / "m.ckpt", state))


@pytest.mark.parametrize("buffer", ["alphas_cumprod", "betas"])
def test_another_noise_schedule(tmp_path, buffer):
    conf = config()
    scheduler = tdq.models.load_compvis(conf).scheduler
    state = checkpoint(weights(), ema=weights(), **{buffer: getattr(scheduler, buffer).clone()})
    file = write(tmp_path / "m.ckpt", state)
    tdq.models.load_compvis(conf, file)
    for change in ("linear_end=0.02", "timesteps=500", "beta_schedule=sqrt_linear"):
        with pytest.raises(ModelError, match="another noise schedule"):
            tdq.models.load_compvis(conf, file, overrides=[f"model.params.{change}"])


def test_another_architecture(tmp_path):
    file = write(tmp_path / "m.ckpt", checkpoint(weights(), ema=weights()))
    wider = config({**UNET, "channel_mult": [1, 3], "attention_resolutions": [2]})
    with pytest.raises(ModelError, match="does not fit the UNet") as error:
        tdq.models.load_compvis(wider, file)
    text = str(error.value)
    assert "unexpected: input_blocks.1.1.norm.weight" in text
    shapes = "input_blocks.3.0.in_layers.2.weight (64, 32, 3, 3), not (96, 32, 3, 3)"
    assert f"of another shape: {shapes}" in text
    assert " more" in text
    assert len(text.splitlines()) < 35


def test_averages_of_another_shape(tmp_path):
    averages = weights() | {"out.2.bias": torch.zeros(5)}
    file = write(tmp_path / "m.ckpt", checkpoint(weights(), ema=averages))
    with pytest.raises(ModelError, match=r"out.2.bias \(5,\), not \(3,\)"):
        tdq.models.load_compvis(config(), file)


def test_a_first_stage_that_is_missing_or_does_not_fit(tmp_path):
    file = write(tmp_path / "m.ckpt", checkpoint(weights(LATENT), ema=weights(LATENT)))
    with pytest.raises(ModelError, match=r"no first stage(.|\n)*ckpt_path"):
        tdq.models.load_compvis(config(LATENT, KL_NODE), file)
    inner = stage(KL_NODE)
    inner["decoder.extra.weight"] = torch.zeros(3)
    inner["quant_conv.weight"] = torch.zeros(6, 8, 1, 1)
    state = checkpoint(weights(LATENT), inner, ema=weights(LATENT))
    with pytest.raises(ModelError, match=r"decoder\.extra(.|\n)*quant_conv.weight \(6, 8"):
        tdq.models.load_compvis(config(LATENT, KL_NODE), write(tmp_path / "n.ckpt", state))


def test_a_checkpoint_of_something_else(tmp_path):
    file = write(tmp_path / "m.ckpt", {"lm_head.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"no tensors named model\.diffusion_model"):
        tdq.models.load_compvis(config(), file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        read(tmp_path / "absent.ckpt")
    for name in ("cut.ckpt", "cut.safetensors"):
        file = write(tmp_path / name, checkpoint(weights()))
        file.write_bytes(file.read_bytes()[: 2**16])
        with pytest.raises(StorageError, match=r"cannot be read(.|\n)*copy it again"):
            read(file)
    for name, content in (("text.ckpt", b"hello"), ("empty.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError):
            read(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    with pytest.raises(StorageError, match="no state dict"):
        read(tmp_path / "none.ckpt")


def test_mistakes_in_the_configuration():
    with pytest.raises(ConfigError, match=r"unet_config\.params\.num_headz"):
        tdq.models.load_compvis(config({**UNET, "num_headz": 3}))
    conf = config()
    conf["model"]["params"]["unet_config"]["target"] = "my.package.Transformer"
    with pytest.raises(ModelError, match=r"no UNet class my\.package\.Transformer"):
        tdq.models.load_compvis(conf)
    with pytest.raises(ModelError, match=r"no first stage Wavelets"):
        tdq.models.load_compvis(config(UNET, {"target": "x.Wavelets", "params": {}}))
    with pytest.raises(ModelError, match="multiple of 32"):
        tdq.models.load_compvis(config({**UNET, "model_channels": 48}))
