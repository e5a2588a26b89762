import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdquant.errors import ClockError
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.fake_quantize import codes, expand_scale, fake_quantize

floats = st.floats(-100, 100, width=32)


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=20), st.floats(0.0078125, 8, width=32))
def test_nearest_grid_point(values, step):
    x, s = torch.tensor(values), torch.tensor(step)
    y = fake_quantize(x, s, -8, 7)
    grid = torch.arange(-8, 8) * s
    nearest = (x[:, None] - grid).abs().min(1).values
    assert torch.allclose((x - y).abs(), nearest, atol=1e-4)


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=20))
def test_idempotent_and_monotone(values):
    x, s = torch.tensor(sorted(values)), torch.tensor(0.25)
    y = fake_quantize(x, s, -8, 7)
    assert torch.equal(fake_quantize(y, s, -8, 7), y)
    assert (y.diff() >= 0).all()


def test_ties_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert codes(x, torch.tensor(1.0), -8, 7).tolist() == [0, 2, 2, 0, -2]


def test_zero_is_exact():
    x = torch.zeros(4)
    assert not fake_quantize(x, torch.tensor(0.3), -3, 12).any()


def test_gradients_are_those_of_lsq():
    x = torch.tensor([-20.0, -1.3, 0.4, 2.6, 30.0], requires_grad=True)
    s = torch.tensor(1.0, requires_grad=True)
    fake_quantize(x, s, -8, 7).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    v = x.detach()
    expected = (-8) + (v[1:4].round() - v[1:4]).sum() + 7
    assert torch.allclose(s.grad, expected)


def test_gradient_of_each_sample_scale():
    x = torch.randn(3, 5)
    s = torch.tensor([0.1, 0.2, 0.4], requires_grad=True)
    fake_quantize(x, expand_scale(s, x), -8, 7).sum().backward()
    for i in range(3):
        one = s.detach()[i].requires_grad_()
        fake_quantize(x[i], one, -8, 7).sum().backward()
        assert torch.allclose(s.grad[i], one.grad)


def test_half_precision_keeps_the_scale_in_float32():
    x = torch.randn(1000).bfloat16()
    s = torch.tensor(0.01234567)
    q = codes(x, s, -128, 127)
    assert torch.equal(fake_quantize(x, s, -128, 127), (q * s).bfloat16())


def test_expand_scale_for_folded_heads():
    s = torch.tensor([1.0, 2.0])
    folded = expand_scale(s, torch.zeros(6, 3), BatchAxis(0))
    assert folded.flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert expand_scale(s[:1], torch.zeros(6, 3)).shape == ()


@pytest.mark.parametrize("batch", [None, BatchAxis(), BatchAxis(2), BatchAxis(None)])
def test_steps_that_differ_need_a_batch_axis_and_equal_ones_are_one(batch):
    x = torch.zeros(5, 3)
    with pytest.raises(ClockError, match="2 different timesteps"):
        expand_scale(torch.tensor([1.0, 2.0]), x, batch)
    assert expand_scale(torch.tensor([2.0, 2.0]), x, batch).shape == ()


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-7, 7), (-15, 0), (-32768, 32767)])
def test_codes_at_the_ends_pass_gradients_and_nothing_beyond_does(low, high):
    ends = torch.tensor([float(low), float(high)])
    beyond = torch.nextafter(ends, ends.new_tensor([-torch.inf, torch.inf]))
    x = torch.cat([ends, beyond]).requires_grad_()
    fake_quantize(x, torch.tensor(1.0), low, high).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
