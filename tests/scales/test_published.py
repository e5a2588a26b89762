import math

import pytest
import torch
import torch.nn.functional as F

from tdquant.freezing import frozen_scale
from tdquant.numerics.grid import Grid
from tdquant.scales import PublishedScale

GRID = Grid.signed(4)
X = torch.zeros(5, 2)


@pytest.fixture
def scale():
    torch.manual_seed(0)
    made = PublishedScale(0.05, features=32)
    made.network[-1].weight.data.mul_(100)
    return made.eval()


def theirs(scale, t):
    """softplus(MLP(emb(t))) from the state dict, one row a timestep."""
    w = torch.exp(-math.log(10000) * torch.arange(16, dtype=torch.float32) / 16)
    angle = t[:, None].float() * w
    h = torch.cat([angle.cos(), angle.sin()], dim=1)
    for i in (0, 2, 4, 7):
        layer = scale.network[i]
        h = F.linear(h, layer.weight, layer.bias)
        h = h.relu() if i < 7 else F.softplus(h)
    return h[:, 0]


def test_raw_timesteps_without_a_floor(scale):
    t = torch.tensor([0, 3, 500, 730, 999])
    with torch.no_grad():
        assert torch.equal(scale(t, X, GRID), theirs(scale, t))
        scale.network[-1].bias.fill_(-40)
        assert scale(t, X, GRID).max() < 1e-8


def test_one_timestep_for_all_is_a_row_a_sample(scale):
    with torch.no_grad():
        found = scale(torch.tensor(730), X, GRID)
        assert torch.equal(found, theirs(scale, torch.full((5,), 730)))
        assert scale(torch.tensor(730), X[:1], GRID).shape == ()


def test_nothing_is_evaluated_ahead(scale):
    assert PublishedScale.batched_steps([scale], torch.tensor(3)) == {}


def test_parameters_are_where_checkpoints_have_them(scale):
    shapes = {n: tuple(p.shape) for n, p in scale.network.named_parameters() if "weight" in n}
    assert shapes == {
        "0.weight": (64, 32),
        "2.weight": (64, 64),
        "4.weight": (64, 64),
        "7.weight": (1, 64),
    }


def test_dropout_as_published(scale):
    t = torch.tensor([500])
    scale.train()
    draws = torch.cat([scale(t, X[:1], GRID) for _ in range(20)])
    assert draws.std() > 0
    scale.eval()
    assert scale(t, X[:1], GRID) == scale(t, X[:1], GRID)


def test_freezes_over_its_training_timesteps(scale):
    scale.time_range[1] = 199
    frozen = frozen_scale(scale, GRID)
    assert len(frozen.knots) == 200
    t = torch.arange(200)
    with torch.no_grad():
        assert torch.equal(frozen(t, X, GRID), scale(t, X, GRID))
