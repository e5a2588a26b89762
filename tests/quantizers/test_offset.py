import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdquant.clock import Clock
from tdquant.numerics.grid import Grid
from tdquant.quantizers import OffsetQuantizer
from tdquant.quantizers.offset import SILU_MINIMUM
from tdquant.scales import StaticScale, TableScale


class Root(nn.Module):
    def forward(self, x, t):
        return x


def make(step=0.1, codes=15, offset=SILU_MINIMUM):
    scale = StaticScale(step) if isinstance(step, float) else step
    return OffsetQuantizer(Grid(codes.bit_length(), 0, codes - 1), scale, Clock(Root()), offset)


def test_silu_has_no_smaller_value():
    x = torch.linspace(-10, 10, 100_001)
    assert nn.functional.silu(x).min() == pytest.approx(SILU_MINIMUM, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(
    step=st.floats(1e-3, 2.0),
    codes=st.sampled_from([3, 7, 15, 255]),
    offset=st.floats(-1.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_gives_the_nearest_of_its_values(step, codes, offset, seed):
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * step * codes
    found = make(step, codes, offset)(x)
    values = offset + torch.arange(codes) * torch.tensor(step)
    nearest = (x[:, None] - values).abs().amin(1)
    assert torch.allclose((found - x).abs(), nearest, atol=1e-5 * step * codes)
    assert torch.isin(found.unique(), (torch.arange(codes) * torch.tensor(step)) + offset).all()


def test_zero_is_off_its_grid():
    assert float(make()(torch.zeros(1)).detach()) == pytest.approx(3 * 0.1 + SILU_MINIMUM)


def test_one_step_a_sample():
    table = TableScale(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.5]))
    quantizer, x = make(table), torch.rand(2, 3, 4, 4)
    with quantizer.clock.at(torch.tensor([0, 1])):
        both = quantizer(x)
    for i in range(2):
        with quantizer.clock.at(i):
            assert torch.equal(quantizer(x[i : i + 1]), both[i : i + 1])


def test_gradients_stop_where_it_clips():
    quantizer = make()
    x = torch.tensor([-1.0, 0.0, 0.5, 5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    assert quantizer.scale.step.grad.isfinite()


def test_dtype_of_its_input():
    assert make()(torch.rand(3).bfloat16()).dtype == torch.bfloat16


def test_says_its_offset():
    assert "codes=15" in repr(make())
    assert "offset=-0.2785" in repr(make())
