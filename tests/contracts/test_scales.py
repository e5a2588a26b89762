"""Every registered scale law through one contract."""

import json

import pytest
import torch

from tdquant.errors import CalibrationError
from tdquant.freezing import frozen_scale
from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import (
    SCALES,
    Curves,
    DynamicScale,
    NoiseScale,
    PactScale,
    PendingScale,
    PublishedScale,
    StaticLogScale,
    StaticScale,
    TableScale,
    TemporalScale,
)
from tdquant.scales.base import recipe_kinds

GRIDS = [Grid.signed(2), Grid.signed(8), Grid.affine(4, 2), Grid.affine(5, 0)]
MAKE = {
    "temporal": lambda: TemporalScale(0.05),
    "static": lambda: StaticScale(0.05),
    "static-log": lambda: StaticLogScale(0.05),
    "published": lambda: PublishedScale(0.05).eval(),
    "pact": lambda: PactScale(0.05),
    "nipq": lambda: NoiseScale(0.05),
    "dynamic": DynamicScale,
    "table": lambda: TableScale(torch.arange(1000.0), torch.rand(1000) + 0.1),
}


def test_every_registered_law_is_here():
    assert set(MAKE) == set(SCALES) - {PendingScale.kind}


@pytest.fixture(params=sorted(MAKE))
def scale(request):
    torch.manual_seed(0)
    return MAKE[request.param]()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("t", [torch.tensor(0), torch.tensor(999), torch.tensor(31.5)])
def test_scalar_time(scale, grid, t):
    s = scale(t, torch.randn(3, 4, 5), grid)
    assert s.shape in ((), (3,))
    assert s.dtype == torch.float32
    assert (s > 0).all()
    assert s.isfinite().all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_mixed_times_equal_one_at_a_time(scale, grid):
    x, t = torch.randn(3, 4, 5), torch.tensor([2, 500, 999])
    s = scale(t, x, grid).expand(3)
    for i in range(3):
        alone = scale(t[i], x[i : i + 1], grid).reshape(())
        assert torch.allclose(s[i], alone, rtol=1e-6)


def test_survives_a_cast(scale):
    x, t, grid = torch.randn(3, 4), torch.tensor(40), GRIDS[1]
    before = scale(t, x, grid)
    assert torch.equal(scale.bfloat16()(t, x, grid), before)
    assert torch.equal(scale.half()(t, x, grid), before)


def test_frozen_equals_live_at_every_training_timestep(scale):
    grid, t, x = GRIDS[1], torch.arange(1000), torch.randn(1000, 3)
    frozen = frozen_scale(scale, grid)
    live = scale(t, x, grid).expand(1000)
    assert torch.allclose(frozen(t, x, grid).expand(1000), live, rtol=3e-7)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_round_trip_through_settings_and_a_state_dict(scale):
    settings = json.loads(json.dumps(scale.settings()))
    other = SCALES[scale.kind].blank(**settings).eval()
    other.load_state_dict(scale.eval().state_dict())
    x, t = torch.randn(3, 4), torch.tensor([1, 10, 100])
    assert torch.equal(scale(t, x, GRIDS[0]), other(t, x, GRIDS[0]))


@pytest.mark.parametrize("kind", sorted(set(MAKE) & set(recipe_kinds()) - {DynamicScale.kind}))
def test_starts_from_the_curves_that_were_calibrated(kind):
    law, grids = SCALES[kind], [Grid.signed(4), Grid.affine(4, 2)]
    times = torch.arange(1000.0)
    moving = 0.1 + 0.4 * (times / 999) ** 2 if law.timed else torch.full_like(times, 0.3)
    steps = torch.stack([moving, torch.full_like(times, 0.05)])
    curves = Curves(times, steps, torch.ones_like(steps), grids, (0.0, 999.0), 0)
    scales = law.from_curves(curves, {})
    assert [type(scale) for scale in scales] == [law, law]
    for scale, grid, wanted in zip(scales, grids, steps, strict=True):
        s = scale(times.long(), torch.empty(0), grid).expand(1000)
        assert (s.log() - wanted.log()).abs().max() < 0.1
        assert scale.training_times() is None or len(scale.training_times()) == 1000
        assert any(p.requires_grad for p in scale.parameters())


def test_pending_always_raises():
    with pytest.raises(CalibrationError):
        PendingScale()(torch.tensor(1), torch.ones(1), GRIDS[0])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_are_the_nearest_grid_points_outside_training(scale, grid):
    x, t = torch.randn(3, 4, 5), torch.tensor([2, 500, 999])
    scale.eval()
    step = expand_scale(scale(t, x, grid), x)
    exact = fake_quantize(x, step, grid.low, grid.high)
    for input in (x, x.clone().requires_grad_()):
        assert torch.equal(scale.quantize(input, step, grid), exact)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_trains_without_nan_at_any_width(scale, grid):
    x, t = torch.randn(3, 4, 5, requires_grad=True), torch.tensor([2, 500, 999])
    scale.train().requires_grad_()
    step = expand_scale(scale(t, x, grid), x)
    scale.quantize(x, step, grid).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scale.parameters())
