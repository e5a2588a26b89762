import pytest
import torch
import torch.nn.functional as F

from tdquant.numerics.grid import Grid
from tdquant.quantizers import CodedWeight
from tests.live import LiveBytes

GRID = Grid.signed(4, narrow=True)


def coded(*shape, dtype=torch.float32):
    codes = torch.randint(
        -7, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0)
    )
    return codes, CodedWeight(GRID, torch.rand(shape[0]) / 10 + 0.01, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "x", "product"),
    [
        ((5, 4), (2, 3, 4), F.linear),
        ((6, 4, 3, 3), (2, 4, 8, 8), F.conv2d),
        ((6, 4, 3), (2, 4, 8), F.conv1d),
    ],
)
def test_the_gradient_is_that_of_the_numbers(shape, x, product, dtype):
    codes, quantizer = coded(*shape, dtype=dtype)
    x = torch.randn(x, dtype=dtype).requires_grad_()
    y = quantizer.multiply(codes, lambda w: product(x, w))
    (found,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(product(x, quantizer(codes)).square().sum(), x)
    assert torch.equal(found, expected)
    assert torch.equal(y, product(x, quantizer(codes)))


def test_autograd_keeps_no_numbers():
    layers = [coded(64, 64) for _ in range(32)]
    x = torch.randn(1, 64).requires_grad_()
    with LiveBytes() as live:
        y = x
        for codes, quantizer in layers:
            y = quantizer.multiply(codes, lambda w, y=y: F.linear(y, w))
        y.sum().backward()
    assert live.peak < 4 * 64 * 64 * 4  # of 32 weights
    assert x.grad.any()
