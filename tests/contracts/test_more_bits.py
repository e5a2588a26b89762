"""More bits and more remedies are never worse: what the default recipe promises of the end of
trajectories.
"""

import copy
import importlib
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.diffusion import make_scheduler
from tests.denoisers import Mixed

WIDTHS = {
    "weights": [(4, 8), (5, 8), (6, 8), (8, 8)],
    "activations": [(8, 4), (8, 5), (8, 6), (8, 8)],
    "both": [(4, 4), (5, 5), (6, 6), (8, 8)],
}


def tiny():
    scheduler = make_scheduler("ddim", {"num_train_timesteps": 1000, "clip_sample": False})
    return Mixed().eval(), scheduler, (6, 8, 8)


def trained(monkeypatch, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "studies"))
    pipe = importlib.import_module("small_models").load(name)
    return pipe.unet, pipe.scheduler, pipe.shape


def errors(model, recipes, count, steps):
    """Geometric mean over samples of the squared error, of noise that calibration has not seen."""
    unet, scheduler, shape = model

    def draw(which):
        return tdq.sample(which, scheduler, 32, shape, steps=steps, seed=9, progress=False)

    calls = tdq.trajectories(
        unet, scheduler, count, shape, steps=steps, batch=count, seed=1, progress=False
    )
    observations = tdq.observe(
        tdq.quantize(copy.deepcopy(unet), recipes[0]), calls, progress=False
    )
    exact, found = draw(unet), []
    for recipe in recipes:
        quantized = tdq.quantize(copy.deepcopy(unet), recipe)
        tdq.calibrate(quantized, observations, progress=False)
        each = (draw(quantized) - exact).square().flatten(1).mean(1)
        found.append(float(each.log().mean().exp()))
    return found


def check_more_bits(model, which, *size):
    found = errors(model, [tdq.Recipe(*bits) for bits in WIDTHS[which]], *size)
    assert found == sorted(found, reverse=True)


def check_remedies(model, bits, *size):
    """Of a few samples, chance makes a tenth. All have the same bits on the time path."""
    plain = [
        tdq.Recipe(*bits, scale=kind, time_weights=8, remedies=())
        for kind in ("static", "temporal", "auto")
    ]
    default, *others = errors(model, [tdq.Recipe(*bits, time_weights=8), *plain], *size)
    assert default < 1.1 * min(others)


@pytest.mark.parametrize("which", ["weights", "activations"])
def test_more_bits_of_a_tiny_network(which):
    torch.manual_seed(0)
    check_more_bits(tiny(), which, 8, 10)


@pytest.mark.slow
@pytest.mark.parametrize("which", WIDTHS)
@pytest.mark.parametrize("name", ["mlp-cats8", "dit-cats"])
def test_more_bits_of_trained_networks(monkeypatch, name, which):
    check_more_bits(trained(monkeypatch, name), which, 16, 20)


@pytest.mark.parametrize("bits", [(8, 5), (4, 8)])
def test_remedies_of_a_tiny_network(bits):
    torch.manual_seed(0)
    check_remedies(tiny(), bits, 16, 10)  # a trial on 8 samples keeps some by chance


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (8, 5), (8, 4), (4, 8), (4, 4)])
@pytest.mark.parametrize("name", ["mlp-cats8", "dit-cats"])
def test_remedies_of_trained_networks(monkeypatch, name, bits):
    check_remedies(trained(monkeypatch, name), bits, 16, 20)
