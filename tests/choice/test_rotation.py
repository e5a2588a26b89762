import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.layers.rotation import RotatedLayer

WIDTH = 64


class Uneven(nn.Module):
    """Linear layers, whose inputs have a few channels that are far larger than the rest."""

    def __init__(self, outliers=True):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        self.middle = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        sizes = torch.ones(WIDTH)
        if outliers:
            sizes[:3] = 40.0
        self.register_buffer("sizes", sizes)

    def forward(self, x, t):
        h = self.first(x) + t.reshape(-1, 1) / 1000
        for layer in self.middle:
            h = h + layer(torch.tanh(h) * self.sizes) / 8
        return self.last(h)


class Tokens(Uneven):
    """The same for a few tokens a sample."""

    def forward(self, x, t):
        return super().forward(x, t.reshape(-1, 1)) if x.ndim > 2 else super().forward(x, t)


def calls(count=12, tokens=()):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, *tokens, 16, generator=draw), torch.tensor(i * 80)) for i in range(count)
    ]


def calibrated(model=None, remedies=("rotation",), bits=(8, 5), batches=None, **options):
    recipe = tdq.Recipe(*bits, scale="auto", remedies=remedies)
    model = tdq.quantize(Uneven() if model is None else model, recipe)
    return tdq.calibrate(model, batches or calls(), progress=False, **options)


def error(model, exact, tokens=()):
    draw = torch.Generator().manual_seed(7)
    x, t = torch.randn(64, *tokens, 16, generator=draw), torch.tensor(300)
    with torch.no_grad():
        return float((model(x, t) - exact(x, t)).square().mean())


def rotated(model):
    return [path for path, m in model.named_modules() if isinstance(m, RotatedLayer)]


def test_layers_with_large_channels_are_rotated():
    plain, model = calibrated(remedies=()), calibrated()
    assert rotated(model) == [f"middle.{i}" for i in range(3)]
    (trial,) = model.tdq.calibration.remedies
    assert (trial.name, trial.kept) == ("rotation", True)
    assert model.tdq.remedies.layers["middle.0.layer"] == ("rotation",)
    assert error(model, Uneven()) < 0.3 * error(plain, Uneven())


def test_channels_that_are_alike_are_not_worth_it():
    model = calibrated(Uneven(outliers=False), bits=(8, 8))
    assert not rotated(model)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)])
def test_frozen_saved_and_loaded(tmp_path, bits):
    model = calibrated(bits=bits, remedies=("rotation", "factors", "groups", "rounding"))
    frozen = tdq.freeze(model)
    tdq.save(frozen, tmp_path / "model")
    loaded, (x, t) = tdq.load(tmp_path / "model", model=Uneven()), calls()[3]
    with torch.no_grad():
        assert torch.allclose(frozen(x, t), model.eval()(x, t), atol=1e-5)
        assert torch.equal(loaded(x, t), frozen(x, t))
        fast = tdq.compile(loaded, "reference")
        assert torch.allclose(fast(x, t), frozen(x, t), atol=1e-5)


@pytest.mark.parametrize(("budget", "count"), [(0.0, 0), (0.3, 1), (1.0, 3)])
def test_a_budget_bounds_the_time_of_additions(budget, count):
    batches = calls(tokens=(5,))
    model = calibrated(Tokens(), batches=batches, budget=tdq.Budget(rotation=budget))
    assert len(rotated(model)) == count


def test_a_product_of_one_row_waits_for_its_weight():
    assert len(rotated(calibrated(budget=tdq.Budget(rotation=1e-6)))) == 3


def test_dead_channels_and_inputs_of_zero():
    model = Uneven()
    with torch.no_grad():
        model.sizes[10:] = 0
    assert torch.isfinite(calibrated(model)(*calls()[0])).all()


@pytest.mark.parametrize("remedies", [("rotation",), "auto"])
def test_the_same_twice(remedies):
    states = [calibrated(remedies=remedies, bits=(4, 4)).state_dict() for _ in range(2)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
