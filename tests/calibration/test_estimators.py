import pytest
import torch

from tdquant.calibration.estimators import ESTIMATORS, best_zero, estimate, one_sided
from tdquant.calibration.histogram import Histogram
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid


def histogram(x):
    h = Histogram()
    h.update(x)
    return h


NORMAL = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
SILU = torch.nn.functional.silu(2 * NORMAL)


def error(x, s, grid):
    return (fake_quantize(x, torch.tensor(s), grid.low, grid.high) - x).square().mean().item()


@pytest.mark.parametrize("grid", [Grid.signed(4), Grid.signed(8), Grid.affine(4, 1)], ids=str)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_positive_and_grows_with_the_data(name, grid):
    x = SILU if grid.qmin == 0 else NORMAL
    small, large = (estimate(histogram(x * k), grid, name) for k in (1, 64))
    assert small > 0
    assert large == pytest.approx(64 * small, rel=0.02)


def test_minmax_clips_nothing():
    for x, grid in ((NORMAL, Grid.signed(8)), (SILU, Grid.affine(5, 2))):
        s = estimate(histogram(x), grid, "minmax")
        assert (
            fake_quantize(x, torch.tensor(s), grid.low, grid.high) - x
        ).abs().max() <= s / 2 + 1e-5


def test_percentile_clips_little():
    grid = Grid.signed(8)
    s = estimate(histogram(NORMAL), grid, "percentile")
    share = (s * grid.high < NORMAL).float().mean()
    assert 0 < share < 0.002


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mse_is_no_worse_than_the_others(bits):
    grid = Grid.signed(bits)
    errors = {n: error(NORMAL, estimate(histogram(NORMAL), grid, n), grid) for n in ESTIMATORS}
    assert errors["mse"] <= 1.02 * min(errors.values())


def test_four_bit_start_is_finer_than_the_datas_sigma():
    # 16 sigma over 15 codes would make one step wider than the data's own spread.
    grid = best_zero([histogram(SILU)], 4)
    assert estimate(histogram(SILU), grid, "mse") < SILU.std()


def test_one_sided():
    assert one_sided(histogram(SILU))
    assert one_sided(histogram(torch.nn.functional.gelu(NORMAL)))
    assert one_sided(histogram(NORMAL.softmax(0) * 100))
    assert not one_sided(histogram(NORMAL))
    assert not one_sided(histogram(0.01 * NORMAL))


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_best_zero_beats_symmetric_codes_after_silu(bits):
    h = histogram(SILU)
    grid, symmetric = best_zero([h], bits), Grid.signed(bits)
    assert grid.low <= 0 < grid.high
    affine = error(SILU, estimate(h, grid, "mse"), grid)
    assert affine < 0.8 * error(SILU, estimate(h, symmetric, "mse"), symmetric)
