import warnings

import pytest
import torch

import tdquant as tdq
from tdquant.diffusion.sampling import denoise_steps
from tdquant.errors import StorageError
from tdquant.models.compvis.checkpoint import write_checkpoint
from tests.models.compvis.examples import (
    KL_NODE,
    LATENT,
    UNET,
    VQ_NODE,
    checkpoint,
    config,
    published,
    read,
    stage,
    weights,
    write,
)

diffusers = pytest.importorskip("diffusers")


def pipe_of(tmp_path, unet=UNET, of=None, quantized=False):
    state = published(weights(unet), unet) if quantized else weights(unet)
    inner = None if of is None else stage(of)
    file = write(tmp_path / "source.ckpt", checkpoint(state, inner))
    return tdq.models.load_compvis(config(unet, of, scale_factor=0.3), file, ema=False)


def lowered(unet, form):
    if form == "float" or form == "quantized":
        return unet
    frozen = tdq.freeze(unet)
    return frozen if form == "frozen" else tdq.compile(frozen, "reference")


def by_hand(pipe, unet, noise, steps):
    with torch.no_grad():
        z = [z for *_, z in denoise_steps(unet, pipe.scheduler, steps, noise)][-1]
        return (pipe.decode(z) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("form", ["float", "quantized", "frozen", "compiled"])
def test_unmodified_ddim_pipeline(tmp_path, form):
    pipe = pipe_of(tmp_path, quantized=form != "float")
    unet = lowered(pipe.unet, form)
    theirs = diffusers.DDIMPipeline(tdq.models.as_diffusers(unet), pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = theirs(2, generator, num_inference_steps=4, output_type="pt").images
    noise = torch.randn(2, *pipe.shape, generator=torch.Generator().manual_seed(0))
    error = (images - by_hand(pipe, unet, noise, 4)).abs()
    # The pipeline's own scheduler multiplies alphas up in float32.
    assert error.max() < (1e-4 if form == "float" else 0.1)
    assert error.mean() < (1e-5 if form == "float" else 1e-2)
    assert images.std() > 0.01


@pytest.mark.parametrize("of", [KL_NODE, VQ_NODE], ids=["KL", "VQ"])
@pytest.mark.parametrize("form", ["float", "frozen"])
def test_unmodified_ldm_pipeline(tmp_path, of, form):
    wide = LATENT if of is KL_NODE else UNET
    pipe = pipe_of(tmp_path, wide, of, quantized=form != "float")
    unet = lowered(pipe.unet, form)
    theirs = diffusers.LDMPipeline(pipe.vae, tdq.models.as_diffusers(unet), pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = theirs(1, generator, num_inference_steps=4, output_type="np").images
    noise = torch.randn(1, *pipe.shape, generator=torch.Generator().manual_seed(0))
    expected = by_hand(pipe, unet, noise, 4).movedim(1, -1)
    assert images.shape == (1, 32, 32, 3)
    assert (torch.from_numpy(images) - expected).abs().max() < 1e-4


def test_what_pipelines_ask_a_model(tmp_path):
    wrapped = tdq.models.as_diffusers(pipe_of(tmp_path).unet)
    assert (wrapped.config.sample_size, wrapped.config.in_channels) == (8, 3)
    assert wrapped.dtype == torch.float32
    assert wrapped.device.type == "cpu"
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        (plain,) = wrapped(x, 7, return_dict=False)
        assert torch.equal(wrapped(x, 7).sample, plain)
        assert torch.equal(wrapped.unet(x, 7), plain)


def test_a_wrapped_unet_can_be_quantized_itself(tmp_path):
    wrapped = tdq.models.as_diffusers(pipe_of(tmp_path).unet)
    tdq.quantize(wrapped, tdq.Recipe(weights=4, scale="dynamic"))
    bits = {row.path: row.weight_bits for row in tdq.summary(wrapped)}
    assert bits["unet.input_blocks.0.0"] == bits["unet.out.2"] == 32
    assert bits["unet.time_embed.0"] == 8
    assert bits["unet.middle_block.0.in_layers.2"] == 4
    assert wrapped(torch.randn(1, 3, 8, 8), 7).sample.isfinite().all()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("of", [None, KL_NODE, VQ_NODE], ids=["pixels", "KL", "VQ"])
def test_written_and_read_back(tmp_path, suffix, of):
    unet = LATENT if of is KL_NODE else UNET
    pipe = pipe_of(tmp_path, unet, of)
    averages = {n: p * 1.5 for n, p in pipe.unet.named_parameters()}
    file = tdq.models.save_compvis(pipe, tmp_path / f"written{suffix}", ema=averages)
    conf = config(unet, of, scale_factor=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = tdq.models.load_compvis(conf, file, ema=False)
        averaged = tdq.models.load_compvis(conf, file)
    for name, parameter in pipe.unet.named_parameters():
        assert torch.equal(raw.unet.get_parameter(name), parameter)
        assert torch.equal(averaged.unet.get_parameter(name), averages[name])
    if of is not None:
        again = raw.vae.state_dict()
        assert all(torch.equal(again[k], v) for k, v in pipe.vae.state_dict().items())
        names = {k for k in read(file) if k.startswith("first_stage_model.")}
        assert names == {f"first_stage_model.{k}" for k in stage(of)}


def test_a_unet_alone_and_an_averaged_copy(tmp_path):
    pipe, other = pipe_of(tmp_path), tdq.models.UNetModel(**UNET)
    file = tdq.models.save_compvis(pipe.unet, tmp_path / "unet.safetensors", ema=other)
    found = tdq.models.load_compvis(config(), file).unet.state_dict()
    assert all(torch.equal(found[n], p) for n, p in other.state_dict().items())


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "m.ckpt"
    write_checkpoint({"a": torch.ones(2)}, file)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="space"):
        write_checkpoint({"a": torch.zeros(2)}, file)
    assert torch.equal(read(file)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


def test_without_state_dict_it_is_no_checkpoint(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(StorageError, match="no state dict"):
        read(tmp_path / "list.pt")


def test_the_factor_of_the_latents_is_written(tmp_path):
    pipe = pipe_of(tmp_path, LATENT, KL_NODE)
    file = tdq.models.save_compvis(pipe, tmp_path / "written.safetensors")
    other = config(LATENT, KL_NODE, scale_factor=0.7)
    assert tdq.models.load_compvis(other, file, ema=False).scale_factor == pytest.approx(0.3)
