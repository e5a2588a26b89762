import pytest
import torch

from tdquant.errors import ModelError
from tdquant.models import Pipe
from tdquant.models.compvis.autoencoder import (
    build_first_stage,
    first_stage_names,
    from_published,
    to_published,
)
from tests.models.compvis.emulation import FirstStage
from tests.models.compvis.examples import KL, VQ, randomize

STAGES = {
    "KL": ("AutoencoderKL", KL, 4),
    "KL, attention at two levels": ("AutoencoderKL", {**KL, "attn_resolutions": [32, 16]}, 4),
    "KL, narrow embedding": ("AutoencoderKL", KL, 2),
    "KL, one level": ("AutoencoderKL", {**KL, "ch_mult": [1], "num_res_blocks": 1}, 4),
    "KL, no attention": (
        "AutoencoderKL",
        {**KL, "attn_resolutions": [], "attn_type": "none"},
        4,
    ),
    "VQ": ("VQModelInterface", VQ, 3),
    "VQ, attention, narrow embedding": ("VQModel", {**VQ, "attn_resolutions": [8]}, 2),
}


def build(name):
    kind, net, embed = STAGES[name]
    vae = build_first_stage(kind, {"ddconfig": net, "embed_dim": embed, "n_embed": 16}, 0.3)
    state = randomize(to_published(vae))
    vae.load_state_dict(from_published(vae, state))
    return vae, state, FirstStage(net, state)


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_equals_the_published_arithmetic(name):
    vae, _, theirs = build(name)
    pipe = Pipe(torch.nn.Identity(), vae, None, (), name, 0.3)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = theirs.encode(x)
    if "KL" in name:
        expected = expected.chunk(2, dim=1)[0]
    found = pipe.encode(x)
    assert (found - 0.3 * expected).abs().max() <= 1e-5 * expected.abs().max()
    images = theirs.decode(expected)
    assert (pipe.decode(0.3 * expected) - images).abs().max() <= 1e-5 * images.abs().max()


@torch.no_grad()
def test_samples_of_the_posterior():
    vae, _, theirs = build("KL")
    pipe = Pipe(torch.nn.Identity(), vae, None, (), "KL", 0.3)
    x = torch.zeros(2, 3, 32, 32)
    mean, log_variance = theirs.encode(x).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    expected = 0.3 * (mean + (log_variance.clamp(-30, 20) / 2).exp() * noise)
    found = pipe.encode(x, torch.Generator().manual_seed(4))
    assert torch.allclose(found, expected, atol=1e-5)
    each = [torch.Generator().manual_seed(i) for i in range(2)]
    one = pipe.encode(x[:1], torch.Generator().manual_seed(0))
    assert torch.allclose(pipe.encode(x, each)[:1], one, atol=1e-5)


def test_a_pixel_model_sees_images():
    pipe = Pipe(torch.nn.Identity(), None, None, (), "pixels")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(pipe.encode(x), x)
    assert torch.equal(pipe.decode(x), x)


@pytest.mark.parametrize("name", STAGES)
def test_names_go_both_ways(name):
    vae, state, _ = build(name)
    names = first_stage_names(vae)
    assert len(set(names.values())) == len(names)
    again = to_published(vae)
    assert set(again) == set(state)
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_names_of_published_checkpoints():
    names = set(to_published(build("KL")[0]))
    assert {
        "encoder.down.1.attn.1.q.weight",
        "encoder.down.0.downsample.conv.bias",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "decoder.up.2.upsample.conv.weight",
        "decoder.up.0.block.2.norm1.weight",
        "decoder.mid.attn_1.proj_out.weight",
        "decoder.mid.block_2.conv2.bias",
        "decoder.norm_out.weight",
        "post_quant_conv.weight",
    } <= names
    assert "quantize.embedding.weight" in to_published(build("VQ")[0])


def test_all_options_without_a_counterpart_are_listed():
    net = {**KL, "resamp_with_conv": False, "use_linear_attn": True, "tanh_out": True}
    with pytest.raises(ModelError, match=r"resamp(.|\n)*linear(.|\n)*tanh_out(.|\n)*double_z=T"):
        build_first_stage("VQModel", {"ddconfig": net, "embed_dim": 3, "n_embed": 4}, 1.0)
