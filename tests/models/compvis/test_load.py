import json
import warnings

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ConfigError, ModelError, StorageError
from tdquant.models.compvis.checkpoint import read_checkpoint

from .emulation import FirstStage, UNet
from .examples import (
    KL,
    KL_NODE,
    LATENT,
    UNET,
    VQ_NODE,
    checkpoint,
    config,
    inputs,
    node,
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
    with pytest.raises(ModelError, match=r"the first middle_block\.1\.qkv\.weight"):
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
    with pytest.raises(ModelError, match=r"first stage(.|\n)*missing: encoder"):
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


class Callback:
    """What Lightning pickles beside the weights."""

    ran = False

    def __setstate__(self, state):
        Callback.ran = True


def test_a_pickle_of_more_than_tensors(tmp_path):
    state = checkpoint(weights(), ema=weights())
    callback = Callback()
    callback.monitor = "loss"
    file = write(tmp_path / "m.ckpt", state, callbacks=[callback])
    with pytest.raises(StorageError, match=r"test_load\.Callback; Lightning(.|\n)*--allow-pickle"):
        tdq.models.load_compvis(config(), file)
    assert not Callback.ran
    pipe = tdq.models.load_compvis(config(), file, allow_pickle=True)
    assert Callback.ran
    assert outputs(pipe)[2].any()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        read_checkpoint(tmp_path / "absent.ckpt")
    for name in ("cut.ckpt", "cut.safetensors"):
        file = write(tmp_path / name, checkpoint(weights()))
        file.write_bytes(file.read_bytes()[: 2**16])
        with pytest.raises(StorageError, match=r"cannot be read(.|\n)*copy it again"):
            read_checkpoint(file)
    for name, content in (("text.ckpt", b"hello"), ("empty.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError):
            read_checkpoint(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    with pytest.raises(StorageError, match="no state dict"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_mistakes_in_the_configuration():
    with pytest.raises(ConfigError, match=r"unet_config\.params\.num_headz"):
        tdq.models.load_compvis(config({**UNET, "num_headz": 3}))
    conf = config()
    conf["model"]["params"]["unet_config"]["target"] = "my.package.Transformer"
    with pytest.raises(ModelError, match=r"no UNet class my\.package\.Transformer"):
        tdq.models.load_compvis(conf)
    with pytest.raises(ModelError, match=r"no first stage x\.Wavelets"):
        tdq.models.load_compvis(config(UNET, {"target": "x.Wavelets", "params": {}}))
    with pytest.raises(ModelError, match="multiple of 32"):
        tdq.models.load_compvis(config({**UNET, "model_channels": 48}))
