from importlib import resources

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ModelError
from tdquant.models.build import description, from_description
from tdquant.models.embedded import EMBEDDED


@pytest.mark.parametrize("name", EMBEDDED)
def test_loads_and_runs(name):
    pipe = tdq.models.load_embedded(name)
    assert not pipe.unet.training
    assert (pipe.vae is None) == (name != "cats-ldm")
    x = torch.randn(2, *pipe.shape)
    assert pipe.unet(x, torch.tensor([3, 900])).shape == x.shape
    assert torch.equal(pipe.unet(x, 3), tdq.models.load_embedded(name).unet(x, 3))


def test_small_enough_to_ship():
    folder = resources.files("tdquant.models") / "weights"
    sizes = {f.name: len(f.read_bytes()) for f in folder.iterdir()}
    assert all(size < 8e6 for size in sizes.values()), sizes


def test_it_denoises_cats_it_never_saw():
    # v-prediction: predicting zero would leave an error of about 1.
    pipe = tdq.models.load_embedded("cats-ddpm")
    cats = tdq.data.Cats("heldout", 64)
    x = torch.stack([cats[i] for i in range(64)])
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=rng)
    t = torch.linspace(20, 900, 64).long()
    a = pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    with torch.no_grad():
        v = pipe.unet(a.sqrt() * x + (1 - a).sqrt() * noise, t)
    error = (v - (a.sqrt() * noise - (1 - a).sqrt() * x)).square().mean()
    assert error < 0.12


@torch.no_grad()
def test_the_first_stage_of_the_latent_model_keeps_cats_it_never_saw():
    pipe = tdq.models.load_embedded("cats-ldm")
    cats = tdq.data.Cats("heldout", 32)
    x = torch.stack([cats[i] for i in range(32)])
    z = pipe.encode(x)
    assert z.shape == (32, *pipe.shape)
    assert 0.7 < float(z.std()) < 1.5  # what the noise schedule expects, roughly
    error = (pipe.decode(z).clamp(-1, 1) - x).square().mean()
    assert 10 * torch.log10(4 / error) > 32  # PSNR in dB
    shuffled = pipe.decode(z[torch.randperm(32)]).clamp(-1, 1)
    assert (shuffled - x).square().mean() > 20 * error


@torch.no_grad()
def test_the_latent_model_denoises_cats_it_never_saw():
    # Noise prediction: predicting zero would leave an error of about 1.
    pipe = tdq.models.load_embedded("cats-ldm")
    cats = tdq.data.Cats("heldout", 64)
    z = pipe.encode(torch.stack([cats[i] for i in range(64)]))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(200, 900, 64).long()
    a = pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    predicted = pipe.unet(a.sqrt() * z + (1 - a).sqrt() * noise, t)
    assert (predicted - noise).square().mean() < 0.12


def test_unknown_names():
    with pytest.raises(ModelError, match="no embedded model 'dogs'"):
        tdq.models.load_embedded("dogs")


def test_descriptions_build_only_known_classes():
    unet = tdq.models.load_embedded("tiny").unet
    spec = description(unet)
    again = from_description(spec)
    again.load_state_dict(unet.state_dict())
    for bad in (
        {"source": "diffusers", "class": "DiffusionPipeline", "config": {}},
        {"source": "diffusers", "class": "utils", "config": {}},
        {"source": "os", "class": "system", "config": {}},
        {"source": "tdquant", "class": "Popen", "config": {}},
    ):
        with pytest.raises(ModelError, match="no model class"):
            from_description(bad)
    with pytest.raises(ModelError, match="cannot be built"):
        from_description(None)
