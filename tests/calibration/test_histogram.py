import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdquant.calibration.histogram import BINS, Histogram, pooled, squared_error
from tdquant.errors import CalibrationError
from tdquant.numerics.fake_quantize import fake_quantize


def histogram(*parts):
    h = Histogram()
    for part in parts:
        h.update(part)
    return h


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), st.integers(1, 49))
@example([0.0, 2.1e-44], 1)
@example([2.1e-44, -1.0], 1)
def test_order_and_split_do_not_matter(values, cut):
    x = torch.tensor(values)
    parts = [p for p in (x[cut:], x[:cut]) if len(p)]
    a, b = histogram(x), histogram(*parts)
    assert (a.low, a.high, a.total, a.limit) == (b.low, b.high, b.total, b.limit)
    assert torch.equal(a.counts, b.counts)


def test_memory_does_not_grow():
    h = Histogram()
    for scale in (1e-6, 1.0, 1e6):
        h.update(torch.randn(100) * scale)
    assert h.counts.shape == (BINS,)
    assert h.counts.sum() == 300


def test_widening_keeps_zero_an_edge():
    h = histogram(torch.tensor([-0.1, 0.1, 0.1]))
    h.update(torch.tensor([50.0]))
    assert h.counts[: BINS // 2].sum() == 1
    assert h.counts[BINS // 2 :].sum() == 3


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-2, 13), (-128, 127)])
def test_error_is_that_of_the_elements(low, high):
    x = torch.nn.functional.silu(3 * torch.randn(200_000))
    steps = torch.tensor([0.02, 0.1, 0.5])
    expected = torch.stack([(fake_quantize(x, s, low, high) - x).square().mean() for s in steps])
    assert torch.allclose(squared_error(histogram(x), steps, low, high), expected, rtol=0.05)


def test_quantile():
    h = histogram(torch.linspace(-1, 1, 10_001))
    assert h.quantile(0.5) == pytest.approx(0, abs=1e-3)
    assert h.quantile(0.999) == pytest.approx(0.998, abs=2e-3)
    assert h.quantile(1.0) <= 1.0


def test_pooled_counts_every_time_alike():
    many, few = torch.zeros(10_000) + 0.1, torch.zeros(10) + 0.9
    p = pooled([histogram(many), histogram(few)])
    assert p.counts.sum().item() == pytest.approx(2)
    assert p.quantile(0.49) == pytest.approx(0.1, abs=1e-3)
    assert p.quantile(0.51) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value):
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        histogram(torch.tensor([1.0, value]))


def test_all_zero_and_empty():
    h = histogram(torch.zeros(5))
    assert h.limit == 0
    assert squared_error(h, torch.tensor([0.1]), -8, 7).item() == pytest.approx(0, abs=1e-6)
    assert squared_error(Histogram(), torch.tensor([0.1, 0.2]), -8, 7).tolist() == [0, 0]
