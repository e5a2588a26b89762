import pytest
import torch

from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import StaticScale


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
