import math

import pytest
import torch
from torch import nn

from tdquant.errors import CalibrationError, RecipeError
from tdquant.numerics.grid import Grid
from tdquant.scales import TemporalScale
from tdquant.scales.base import inverse_softplus
from tdquant.scales.encodings import ENCODINGS, NOMINAL, fourier_features
from tdquant.scales.temporal import evaluate

GRID = Grid.signed(4)


@pytest.mark.parametrize("start", [1e-6, 0.003, 0.05, 1.0, 40.0])
@pytest.mark.parametrize("seed", range(3))
def test_starts_flat_at_the_first_step(start, seed):
    # He initialisation spreads s(t) over 0.16 to 50 times its start.
    torch.manual_seed(seed)
    scale = TemporalScale(start)
    s = scale(torch.arange(1000), torch.empty(0), GRID)
    assert ((s / start - 1).abs() < 0.1).all()


def test_inverse_softplus_over_the_whole_range():
    s = torch.tensor([1e-30, 1e-8, 1e-3, 1.0, 50.0, 1e4, 1e30])
    y = inverse_softplus(s)
    assert y.isfinite().all()
    assert torch.allclose(nn.functional.softplus(y), s, rtol=1e-5)


def test_features_are_cosines_then_sines_of_geometric_frequencies():
    f = fourier_features(torch.tensor([7.0]), 8)[0]
    for i in range(4):
        w = 10000 ** (-i / 4)
        assert f[i].item() == pytest.approx(math.cos(7 * w), abs=1e-5)
        assert f[4 + i].item() == pytest.approx(math.sin(7 * w), abs=1e-5)


def test_time_is_normalised_to_the_models_own_range():
    torch.manual_seed(0)
    index = TemporalScale(0.1)
    torch.manual_seed(0)
    sigma = TemporalScale(0.1, time_range=(0.0, 1.0))
    t = torch.linspace(0, 999, 50)
    empty = torch.empty(0)
    assert torch.allclose(index(t, empty, GRID), sigma(t / 999, empty, GRID), rtol=1e-4)
    assert torch.equal(index.encode(t), fourier_features(t, 64))


def test_no_dropout_by_default():
    # Dropout would make training and sampling see different scales.
    scale = TemporalScale(0.1)
    t, empty = torch.arange(10), torch.empty(0)
    assert torch.equal(scale.train()(t, empty, GRID), scale.eval()(t, empty, GRID))
    assert not any(isinstance(m, nn.Dropout) for m in scale.modules())


def test_published_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    scale = TemporalScale(0.1, dropout=0.5)
    scale.network[-1].weight.data.mul_(100)
    t, empty = torch.arange(64), torch.empty(0)
    assert not torch.equal(scale.train()(t, empty, GRID), scale.eval()(t, empty, GRID))
    assert torch.equal(scale.eval()(t, empty, GRID), scale.eval()(t, empty, GRID))


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_depth_counts_linear_layers(depth):
    scale = TemporalScale(depth=depth)
    assert sum(isinstance(m, nn.Linear) for m in scale.modules()) == depth


@pytest.mark.parametrize(
    "options",
    [{"features": 7}, {"hidden": 0}, {"depth": 0}, {"dropout": 1.0}, {"encoding": "sine"}],
)
def test_options_that_cannot_be(options):
    with pytest.raises(RecipeError):
        TemporalScale(**options)


def test_empty_time_range():
    with pytest.raises(RecipeError, match="time range"):
        TemporalScale(time_range=(1.0, 1.0))


@pytest.mark.parametrize("start", [float("nan"), float("inf"), -0.1])
def test_start_that_is_no_scale(start):
    # A signed mean of activations can be negative or zero; a start from it must not pass silently.
    with pytest.raises(CalibrationError, match="a scale of"):
        TemporalScale(start)


def test_gradient_reaches_every_layer():
    scale = TemporalScale(0.1)
    scale(torch.tensor([3, 900]), torch.empty(0), GRID).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scale.parameters())


def test_many_together_equal_each_alone():
    scales = [TemporalScale(0.1 * (i + 1), hidden=16, depth=3) for i in range(5)]
    t = torch.randint(0, 1000, (11,))
    together = evaluate(scales, t)
    assert together.shape == (5, 11)
    for row, scale in zip(together, scales, strict=True):
        assert torch.allclose(row, scale(t, torch.empty(0), GRID), rtol=1e-6)
    together.log().sum().backward()
    ahead = [p.grad.clone() for s in scales for p in s.parameters()]
    for scale in scales:
        scale.zero_grad()
        scale(t, torch.empty(0), GRID).log().sum().backward()
    alone = [p.grad for s in scales for p in s.parameters()]
    for a, b in zip(ahead, alone, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_a_timestep_has_one_scale_whoever_is_evaluated_with_it(rows):
    torch.manual_seed(0)
    scales = [TemporalScale(0.1) for _ in range(4)]
    for scale in scales:
        scale.network[-1].weight.data.mul_(50)
    every = evaluate(scales, torch.arange(1000))
    for first in range(0, 1000 - rows, 97):
        t = torch.arange(first, first + rows)
        assert torch.equal(evaluate(scales, t), every[:, t])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_tells_times_apart_and_is_bounded(encoding):
    t = torch.linspace(0, NOMINAL, 200)
    features = ENCODINGS[encoding](t, 16)
    assert features.shape[0] == 200
    assert features.isfinite().all()
    assert features.abs().max() <= 2.0
    assert len({tuple(row) for row in features.tolist()}) == 200
    scale = TemporalScale(0.1, features=16, encoding=encoding)
    s = scale(t, torch.empty(0), GRID)
    assert ((s / 0.1 - 1).abs() < 0.1).all()


def test_log_snr_is_that_of_the_cosine_schedule():
    schedulers = pytest.importorskip("diffusers")
    scheduler = schedulers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    a = scheduler.alphas_cumprod[50:950].double()
    expected = (a / (1 - a)).log() / 8
    found = ENCODINGS["log-snr"](torch.arange(50, 950), 1).squeeze(-1)
    assert torch.allclose(found.double(), expected, atol=0.02)


def test_different_architectures_and_ranges_go_ahead_together():
    scales = [
        TemporalScale(0.1),
        TemporalScale(0.2, time_range=(0.0, 1.0)),
        TemporalScale(0.3, hidden=16, depth=2),
        TemporalScale(0.4, features=32, depth=1),
        TemporalScale(0.5, encoding="time"),
        TemporalScale(0.6, encoding="log-snr"),
    ]
    t = torch.tensor([0.25, 0.5])
    ahead = TemporalScale.batched_steps(scales, t)
    assert set(ahead) == set(scales)
    for scale in scales:
        assert torch.allclose(ahead[scale], scale(t, torch.empty(0), GRID), rtol=1e-6)
    assert all(
        s.shape == () for s in TemporalScale.batched_steps(scales, torch.tensor(7)).values()
    )


def test_dropout_draws_its_own_mask_for_each_scale():
    scales = [TemporalScale(0.1, dropout=0.5) for _ in range(2)]
    scales[1].load_state_dict(scales[0].state_dict())
    for scale in scales:
        scale.network[-1].weight.data.mul_(100)
    t = torch.arange(64)
    first, second = TemporalScale.batched_steps(scales, t).values()
    assert not torch.equal(first, second)
    scales[1].eval()  # in another mode than its like: a group of its own
    ahead = TemporalScale.batched_steps(scales, t)
    assert torch.equal(ahead[scales[1]], scales[1](t, torch.empty(0), GRID))
