import torch

from tdquant.numerics.fake_quantize import FLOOR, expand_scale
from tdquant.numerics.grid import Grid
from tdquant.scales import DynamicScale


def test_a_step_holds_the_extremes_of_each_row():
    x = torch.tensor([[[1.0, -2.0], [0.5, 0.25]], [[0.0, 0.0], [-127.0, 3.0]]])
    step = DynamicScale(by_row=True)(None, x, Grid.signed(8))
    assert step.shape == (2, 2, 1)
    assert torch.equal(expand_scale(step, x), step)
    wanted = torch.tensor([[2 / 128, 0.5 / 127], [FLOOR, 127 / 128]]).unsqueeze(-1)
    assert torch.allclose(step, wanted)
    assert ((x / step).round() <= 127).all()


def test_rows_of_one_sided_codes():
    x, grid = torch.tensor([[4.0, -0.1], [4.0, -1.0]]), Grid.affine(8, 16)
    step = DynamicScale(by_row=True)(None, x, grid)
    assert torch.allclose(step, torch.tensor([[4 / grid.high], [1 / 16]]))


def test_one_vector_is_one_row():
    x = torch.tensor([3.0, -1.0])
    assert DynamicScale(by_row=True)(None, x, Grid.signed(8)).shape == (1,)


def test_settings_are_those_of_a_copy():
    assert DynamicScale.blank(**DynamicScale(by_row=True).settings()).by_row
    assert not DynamicScale.blank(**DynamicScale().settings()).by_row
