import pytest
import torch

from tdquant.errors import CalibrationError
from tdquant.numerics.grid import Grid
from tdquant.scales import PactScale


def output(scale, x, grid):
    return scale.quantize(x, scale(None, x, grid), grid)


@pytest.mark.parametrize("grid", [Grid.signed(4), Grid.affine(4, 0), Grid.affine(4, 3)], ids=str)
def test_gradients_come_from_clipping_alone(grid):
    alpha, x = 0.7, torch.linspace(-3, 3, 61).requires_grad_()
    weight = torch.rand(61)
    scale = PactScale(alpha)
    (output(scale, x, grid) * weight).sum().backward()
    above, below = x.detach() > alpha, x.detach() < alpha * grid.low / grid.high
    expected = weight[above].sum() + weight[below].sum() * grid.low / grid.high
    assert scale.alpha.grad.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(x.grad, weight * ~(above | below))


def test_gradient_is_the_slope_of_clipping():
    # The mean over many values, of which rounding moves each a little, follows the clipped mean.
    grid, x = Grid.signed(8), torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    scale = PactScale(1.5)
    output(scale, x, grid).square().sum().backward()
    with torch.no_grad():
        ends = [output(PactScale(a), x, grid).square().sum() for a in (1.48, 1.52)]
    assert scale.alpha.grad.item() == pytest.approx(float(ends[1] - ends[0]) / 0.04, rel=0.02)


def test_starts_where_a_step_was_calibrated():
    for grid in (Grid.signed(4), Grid.affine(4, 3), Grid.affine(4, 15)):
        assert PactScale.from_step(0.1, grid)(None, torch.ones(1), grid).item() == pytest.approx(
            0.1
        )


def test_stays_positive():
    scale = PactScale(0.5)
    with torch.no_grad():
        scale.alpha.fill_(-1)
    step = scale(None, torch.ones(1), Grid.signed(4))
    assert step > 0
    step.backward()
    assert scale.alpha.grad != 0


def test_start_that_is_no_range():
    with pytest.raises(CalibrationError):
        PactScale(float("nan"))
