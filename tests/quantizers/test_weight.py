import pytest
import torch

from tdquant.errors import ConversionError, FreezeError
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import FrozenWeight, WeightQuantizer
from tdquant.quantizers.steps import mse_step

GRID = Grid.signed(4, narrow=True)


@pytest.mark.parametrize("per_channel", [True, False])
def test_step_is_better_than_the_maximum(per_channel):
    w = torch.randn(8, 3, 3, 3)
    step = mse_step(w, GRID, per_channel)
    quantizer = WeightQuantizer(GRID, step)
    error = (quantizer(w) - w).square().mean()
    largest = w.flatten(1).abs().amax(1) if per_channel else w.abs().max()
    naive = WeightQuantizer(GRID, largest / GRID.high)
    assert error <= (naive(w) - w).square().mean()
    assert step.shape == ((8,) if per_channel else ())


def test_magnitude_counts_and_not_the_signed_maximum():
    w = -torch.rand(4, 10) - 1  # max(w) would be about -1: no scale at all
    assert (mse_step(w, GRID, True) > 1 / GRID.high).all()


def test_two_bits():
    w = torch.randn(4, 10)
    grid = Grid.signed(2, narrow=True)
    assert grid.codes == 3
    y = WeightQuantizer(grid, mse_step(w, grid, True))(w)
    assert y.isfinite().all()
    assert y.any()


def test_zero_channel_among_others_is_fine():
    w = torch.randn(4, 10)
    w[1] = 0
    y = WeightQuantizer(GRID, mse_step(w, GRID, True))(w)
    assert y.isfinite().all()
    assert not y[1].any()


@pytest.mark.parametrize(("value", "match"), [(0.0, "zero"), (float("nan"), "NaN")])
def test_layers_that_cannot_be_quantized(value, match):
    w = torch.full((4, 10), value)
    with pytest.raises(ConversionError, match=match) as error:
        mse_step(w, GRID, True, "mid.conv")
    assert "mid.conv" in str(error.value)
    assert "fix:" in str(error.value)


def test_gradient_scale_of_lsq():
    w = torch.randn(4, 10)
    q = WeightQuantizer(GRID, torch.full((4,), 0.2))
    q(w).sum().backward()
    plain = torch.full((4, 1), 0.2, requires_grad=True)
    fake_quantize(w, plain, GRID.low, GRID.high).sum().backward()
    assert torch.allclose(q.step.grad, plain.grad.squeeze(1) / (10 * 7) ** 0.5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_frozen_codes_are_exact(bits, dtype):
    grid = Grid.signed(bits, narrow=True)
    w = torch.randn(16, 50)
    q = WeightQuantizer(grid, mse_step(w, grid, True))
    frozen = FrozenWeight(grid, q.step)
    on_grid = q(w).to(dtype)
    codes = frozen.codes(on_grid)
    assert codes.abs().max() <= grid.high
    assert torch.equal((codes * frozen.scale(w)).to(dtype), on_grid)


def test_frozen_weight_that_was_changed():
    w = torch.randn(4, 10)
    frozen = FrozenWeight(GRID, mse_step(w, GRID, True))
    with pytest.raises(FreezeError, match="off its grid"):
        frozen.codes(w, "mid.conv")
