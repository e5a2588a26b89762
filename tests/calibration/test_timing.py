import pytest
import torch

from tdquant.calibration.timing import BINS, LEAST, TimeBins


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 1000])
def test_bins_hold_as_many_times(count):
    times = torch.arange(count).float() ** 2
    bins = TimeBins(times)
    found = bins.find(times).bincount(minlength=len(bins.weights))
    assert len(found) == min(BINS, count)
    assert int(found.max() - found.min()) <= 1


def test_weights_are_inverse_roots_of_the_errors():
    times = torch.tensor([0.0, 0.0, 500.0, 999.0])
    errors = torch.tensor([100.0, 300.0, 1.0, 0.0])
    bins = TimeBins(times)
    sums = bins.sums(times, errors)
    bins.balance(sums)
    assert bins.error(sums) == pytest.approx(1)
    least = LEAST * 401 / 4  # of a time without any error
    roots = torch.tensor([200.0, 200.0, 1.0, least]).sqrt()
    weights = bins.weight(times) * roots
    assert torch.allclose(weights, weights[0].expand(4))
    better = bins.sums(times, errors * torch.tensor([1, 1, 0.5, 1]))
    assert bins.error(better) == pytest.approx(1 - 0.5 / float(2 * roots[0] + 1))


def test_sums_of_portions_and_of_nothing():
    times, errors = torch.arange(20.0), torch.rand(20)
    bins = TimeBins(times)
    parts = bins.sums(times[:7], errors[:7]) + bins.sums(times[7:], errors[7:])
    assert torch.allclose(parts, bins.sums(times, errors))
    assert not bins.sums(torch.zeros(0), torch.zeros(0)).any()
