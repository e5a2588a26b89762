import pytest
import torch

from tdquant.numerics.fake_quantize import noise_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import NoiseWeight
from tdquant.scales import NoiseScale

GRID = Grid.signed(4)


def test_noise_is_as_large_as_the_error_of_rounding():
    x, s = torch.zeros(100_000), torch.tensor(0.2)
    noise = noise_quantize(x, s, GRID.low, GRID.high)
    assert noise.abs().max() <= 0.1
    assert noise.mean().abs() < 1e-3
    assert noise.square().mean().item() == pytest.approx(0.2**2 / 12, rel=0.02)


def test_gradients_equal_finite_differences_under_the_same_noise():
    x = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    ends = torch.tensor([GRID.low, GRID.high]) * 0.2
    x[(x[:, None] - ends).abs().min(1).values < 0.02] = 0  # away from the kinks

    def loss(x, s):
        torch.manual_seed(0)
        y = noise_quantize(x, s, GRID.low, GRID.high)
        return (y * torch.linspace(-1, 2, 40)).sum()

    s = torch.tensor(0.2, requires_grad=True)
    leaf = x.clone().requires_grad_()
    loss(leaf, s).backward()
    with torch.no_grad():
        h = 1e-3
        slope = (loss(x, s + h) - loss(x, s - h)) / (2 * h)
        assert s.grad.item() == pytest.approx(slope.item(), rel=1e-3)
        inside = (x >= GRID.low * s) & (x <= GRID.high * s)
    assert torch.equal(leaf.grad, torch.linspace(-1, 2, 40) * inside)


def test_rounds_when_it_does_not_train():
    x, scale = torch.randn(2, 50), NoiseScale(0.3)
    step = scale(None, x, GRID)
    assert not torch.equal(scale.train().quantize(x, step, GRID), scale.quantize(x, step, GRID))
    codes = scale.eval().quantize(x, step, GRID) / step
    assert torch.allclose(codes, codes.round(), atol=1e-5)


def test_weights():
    grid, w = Grid.signed(4, narrow=True), torch.randn(8, 30)
    quantizer = NoiseWeight(grid, torch.full((8,), 0.3))
    noisy = quantizer.train()(w)
    assert ((noisy - w.clamp(-2.1, 2.1)).abs() <= 0.1501).all()
    noisy.sum().backward()
    assert quantizer.step.grad.ne(0).all()
    codes = quantizer.eval()(w) / 0.3
    assert torch.allclose(codes, codes.round(), atol=1e-5)


def test_half_precision():
    y = noise_quantize(torch.randn(9).bfloat16(), torch.tensor(0.3), GRID.low, GRID.high)
    assert y.dtype == torch.bfloat16
