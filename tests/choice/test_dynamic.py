import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.choice.within import within
from tdquant.quantizers import activation_quantizers
from tdquant.scales import DynamicScale

WIDTH = 32


class Loud(nn.Module):
    """Linear layers and a convolution whose inputs are as loud as the sample, over 64 times."""

    def __init__(self, loud=True):
        super().__init__()
        torch.manual_seed(5)
        self.loud = loud
        self.first, self.last = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.window = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x, t):
        volume = (3 * x.mean((1, 2), keepdim=True) * x.shape[1] ** 0.5).clamp(-2, 2).exp()
        h = self.first(x) + t.reshape(-1, 1, 1) / 1000
        if not self.loud:
            volume = torch.ones_like(volume)
        h = h + self.middle(torch.tanh(h) * volume) / volume
        h = h + self.window(torch.sin(h) * volume) / volume
        return self.last(h)


def calls(count=12, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 4, 16, generator=draw), torch.tensor(i * 80)) for i in range(count)]


def calibrated(model=None, bits=(8, 6), remedies=("dynamic",), budget=1.0):
    recipe = tdq.Recipe(*bits, scale="auto", remedies=remedies)
    model = tdq.quantize(Loud() if model is None else model, recipe)
    return tdq.calibrate(model, calls(), budget=tdq.Budget(dynamic=budget), progress=False)


def dynamic(model):
    return {
        path.removesuffix(".input_quantizer"): q.scale.by_row
        for path, q in activation_quantizers(model)
        if isinstance(q.scale, DynamicScale)
    }


def error(model, exact):
    with torch.no_grad():
        pairs = [(model(x, t), exact(x, t)) for x, t in calls(8, seed=9)]
    return float(torch.stack([(y - z).square().mean() for y, z in pairs]).mean())


def test_inputs_that_vary_from_sample_to_sample_get_steps_of_their_own():
    plain, model = calibrated(remedies=()), calibrated()
    assert dynamic(model) == {"middle": True, "window": False}
    (trial,) = model.tdq.calibration.remedies
    assert (trial.name, trial.kept) == ("dynamic", True)
    assert model.tdq.remedies.layers == {"middle": ("dynamic",), "window": ("dynamic",)}
    assert error(model, Loud()) < 0.5 * error(plain, Loud())


def test_inputs_that_are_alike_keep_their_scales():
    assert not dynamic(calibrated(Loud(loud=False), bits=(8, 8)))


def test_a_budget_bounds_the_time_of_reductions():
    assert not dynamic(calibrated(budget=0.0))
    assert not dynamic(calibrated(budget=1e-4))


def test_calibrating_again_decides_anew():
    model = calibrated()
    quiet = tdq.calibrate(
        copy.deepcopy(model), calls(), budget=tdq.Budget(dynamic=0.0), progress=False
    )
    assert not dynamic(quiet)
    assert dynamic(tdq.calibrate(model, calls(), budget=tdq.Budget(dynamic=1.0), progress=False))


def test_what_a_recipe_asks_for_stays_and_is_no_remedy():
    model = tdq.quantize(Loud(), tdq.Recipe(overrides={"middle": {"scale": "dynamic"}}))
    tdq.calibrate(model, calls(), budget=tdq.Budget(dynamic=0.0), progress=False)
    assert dynamic(model) == {"middle": False}
    assert "dynamic" not in str(model.tdq.remedies.layers)


@pytest.mark.parametrize("bits", [(8, 8), (4, 5)])
def test_frozen_saved_and_loaded(tmp_path, bits):
    model = calibrated(bits=bits, remedies=("dynamic", "groups", "rounding"))
    assert dynamic(model)
    frozen = tdq.freeze(model)
    loaded = tdq.load(tdq.save(frozen, tmp_path / "model"), model=Loud())
    assert dynamic(loaded) == dynamic(model)
    x, t = calls()[3]
    with torch.no_grad():
        assert torch.allclose(frozen(x, t), model.eval()(x, t), atol=1e-5)
        assert torch.equal(loaded(x, t), frozen(x, t))
        fast = tdq.compile(loaded, "reference")
        assert torch.allclose(fast(x, t), frozen(x, t), atol=1e-5)


def test_the_largest_gains_for_their_cost_come_first():
    gains, costs = {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 0.9}
    assert within(2.0, gains, costs) == ["b", "c"]
    assert within(5.0, gains, costs) == ["b", "c", "a"]
