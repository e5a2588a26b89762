import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.layers import quantized_layers

WIDTH = 16


class Timed(nn.Module):
    """A time path beside one layer; its inputs lie on a curve, or go everywhere."""

    def __init__(self, curve=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.time_embedding = nn.Linear(WIDTH, WIDTH)
        speeds = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1))
        self.register_buffer("speeds", speeds * (0.003 if curve else 300.0))
        self.loud = 0.3 if curve else 30.0

    def forward(self, x, t):
        emb = torch.sin(t.reshape(-1, 1).float() * self.speeds + self.speeds * 7)
        h = self.first(x) + self.loud * self.time_embedding(emb)
        return self.last(h + torch.tanh(self.middle(h)))


def calls():
    draw = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 8, generator=draw), torch.tensor(t)) for t in range(0, 1000, 20)]


def calibrated(model, budget=None, **options):
    # A correction of the output over time would make up for the time path.
    options = {"remedies": ("groups", "rounding"), **options}
    model = tdq.quantize(model, tdq.Recipe(4, 16, group=16, **options))
    return tdq.calibrate(model, calls(), budget=budget, progress=False)


def time_bits(model):
    return dict(quantized_layers(model))["time_embedding"].weight_quantizer.grid.bits


def tried(model):
    return [one for one in model.tdq.calibration.remedies if "time path" in one.what]


def test_few_bits_stay_where_the_inputs_lie_on_a_curve():
    model = calibrated(Timed())
    [trial] = tried(model)
    assert time_bits(model) == 5
    assert not trial.kept
    assert trial.after > 0.5 * trial.before


def test_eight_bits_where_few_are_felt():
    model = calibrated(Timed(curve=False))
    [trial] = tried(model)
    assert time_bits(model) == 8
    assert trial.kept
    assert trial.after < 0.5 * trial.before
    assert "8 bits for 1 weights on the time path" in str(trial)
    frozen = tdq.freeze(model)
    with torch.no_grad():
        few = calibrated(Timed(curve=False), time_weights=5)
        errors = [
            sum(float((m(*call) - Timed(curve=False)(*call)).square().mean()) for call in calls())
            for m in (frozen, few)
        ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_recipe_says_is_not_tried(bits):
    model = calibrated(Timed(curve=False), time_weights=bits)
    assert time_bits(model) == bits
    assert not tried(model)


def test_overrides_and_sizes_are_kept():
    overrides = {"time_embedding": {"weights": 4}}
    assert time_bits(calibrated(Timed(curve=False), overrides=overrides)) == 4
    assert (
        time_bits(
            calibrated(
                Timed(curve=False), tdq.Budget(size=1.0), scale="static", remedies=("rounding",)
            )
        )
        == 5
    )
