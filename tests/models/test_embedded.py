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
    assert pipe.vae is None
    x = torch.randn(2, *pipe.shape)
    assert pipe.unet(x, torch.tensor([3, 900])).shape == x.shape
    assert torch.equal(pipe.unet(x, 3), tdq.models.load_embedded(name).unet(x, 3))


def test_small_enough_to_ship():
    folder = resources.files("tdquant.models") / "weights"
    assert sum(len(f.read_bytes()) for f in folder.iterdir()) < 8e6


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
