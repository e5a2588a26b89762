import pytest
import torch
import torch.nn.functional as F

from tdquant.grid import Grid
from tdquant.runtime.native import Codes, missing
from tdquant.runtime.native.norm import GroupNorm

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("shape", [(1, 32, 4, 4), (3, 48, 17, 5), (2, 36, 1, 1), (2, 64, 70)])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_equals_torch(shape, silu, mean):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    for w, b in ((weight, bias), (None, None)):
        y = GroupNorm(4, w, b, 1e-5, silu)(x)
        expected = F.group_norm(x.double(), 4, *(p if p is None else p.double() for p in (w, b)))
        expected = F.silu(expected) if silu else expected
        # One float32 rounding of x is what a large mean costs any implementation.
        tolerance = 2e-6 + 2e-7 * mean
        assert (y - expected).abs().max() <= tolerance * expected.abs().max()


def test_silu_of_anything_is_finite_and_right():
    x = torch.linspace(-200, 200, 4096).reshape(1, 1, 4096).repeat(1, 2, 1)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    norm = GroupNorm(1, torch.full((2,), 100.0), torch.zeros(2), 1e-5, silu=True)
    y, v = norm(x), F.group_norm(x.double(), 1) * 100
    assert y.isfinite().all()
    assert torch.allclose(y.double(), F.silu(v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
def test_codes_are_those_of_the_values(wide):
    x = torch.randn(4, 40, 6, 6).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(8, torch.rand(40), torch.randn(40), 1e-5, silu=True)
    codes = Codes(Grid.affine(8, 20), wide)
    for scale in (torch.tensor(0.03), torch.tensor([0.03, 0.01])):
        assert torch.equal(norm.codes(x, codes, scale, 44), codes.of(norm(x), scale, 44))


def test_samples_do_not_see_each_other():
    x = torch.randn(3, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(4, torch.rand(32), torch.randn(32), 1e-5)
    assert torch.equal(norm(x)[1:2], norm(x[1:2].contiguous(memory_format=torch.channels_last)))
