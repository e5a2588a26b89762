import pytest
import torch

from tdquant.errors import CalibrationError
from tdquant.freezing import frozen_scale
from tdquant.numerics.fake_quantize import FLOOR, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import StaticLogScale, StaticScale


@pytest.mark.parametrize("batch", [1, 8])
def test_gradient_scale_of_lsq(batch):
    # g = 1 / sqrt(N Q), N the features of one sample: the batch does not count.
    grid = Grid.signed(4)
    x = torch.randn(batch, 3, 5)
    scale = StaticScale(0.2)
    fake_quantize(x, scale(None, x, grid), grid.low, grid.high).sum().backward()
    s = torch.tensor(0.2, requires_grad=True)
    fake_quantize(x, s, grid.low, grid.high).sum().backward()
    assert scale.step.grad.item() == pytest.approx(s.grad.item() / (15 * 7) ** 0.5, rel=1e-4)


def test_stays_positive_and_recovers_from_the_floor():
    scale = StaticScale(0.1)
    with torch.no_grad():
        scale.step.fill_(-3.0)
    s = scale(None, torch.ones(1, 4), Grid.signed(4))
    assert s > 0
    s.backward()
    assert scale.step.grad != 0


@pytest.mark.parametrize("start", [3e-7, 0.0123, 0.3, 17.0])
def test_a_logarithm_starts_and_freezes_as_the_step_itself(start):
    x, grid = torch.randn(4, 6), Grid.signed(4)
    raw, log = StaticScale(start), StaticLogScale(start)
    step = raw(None, x, grid)
    assert torch.equal(log(None, x, grid), step)
    frozen = [frozen_scale(scale, grid) for scale in (raw, log)]
    assert [type(scale).__name__ for scale in frozen] == ["TableScale"] * 2
    assert all(scale.static and torch.equal(scale.table, step[None]) for scale in frozen)


def test_the_gradient_of_a_logarithm_is_the_step_times_that_of_the_step():
    x, grid = torch.randn(4, 6), Grid.signed(4)
    scales = StaticScale(0.2), StaticLogScale(0.2)
    for scale in scales:
        scale.quantize(x, scale(None, x, grid), grid).square().sum().backward()
    raw, log = scales[0].step.grad.item(), scales[1].growth.grad.item()
    assert log == pytest.approx(0.2 * raw, rel=1e-5)


@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_a_logarithm_moves_by_the_same_share_whatever_its_size(start):
    grid, scale = Grid.signed(4), StaticLogScale(start)
    optimizer = torch.optim.Adam(scale.parameters(), lr=0.1)
    scale(None, torch.ones(1, 4), grid).backward()
    optimizer.step()
    assert scale(None, torch.ones(1, 4), grid).item() == pytest.approx(start * 0.9048, rel=1e-3)


def test_a_logarithm_stays_above_the_floor():
    scale = StaticLogScale(0.1)
    with torch.no_grad():
        scale.growth.fill_(-200.0)
    s = scale(None, torch.ones(1, 4), Grid.signed(4))
    assert s.item() == pytest.approx(FLOOR)
    with pytest.raises(CalibrationError, match="nan"):
        StaticLogScale(float("nan"))
