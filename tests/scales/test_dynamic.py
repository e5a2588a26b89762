import torch

from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import DynamicScale


def test_holds_the_extremes_of_every_sample():
    x = torch.randn(5, 7) * torch.tensor([0.01, 0.1, 1, 10, 100])[:, None]
    for grid in (Grid.signed(8), Grid.affine(8, 100)):
        s = DynamicScale()(None, x, grid)
        assert s.shape == (5,)
        error = (fake_quantize(x, expand_scale(s, x), grid.low, grid.high) - x).abs().amax(1)
        assert (error <= s / 2 * 1.001).all()


def test_batch_split_changes_nothing():
    x, scale, grid = torch.randn(6, 9), DynamicScale(), Grid.signed(6)
    whole = scale(None, x, grid)
    parts = torch.cat([scale(None, p, grid) for p in x.split(2)])
    assert torch.equal(whole, parts)


def test_zero_input_and_one_sided_grid():
    s = DynamicScale()(None, torch.zeros(2, 3), Grid.affine(4, 0))
    assert (s > 0).all()
