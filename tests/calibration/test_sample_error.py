import math

import pytest
import torch

from tdquant.calibration.sample_error import sample_error


def of(*batches):
    """The error of batches of samples with these squared errors."""
    results = [torch.tensor(errors).sqrt()[:, None].expand(-1, 4) for errors in batches]
    return sample_error(results, [torch.zeros_like(y) for y in results])


def test_geometric_mean_of_the_middle_half():
    errors = [1e-2, 1e-6, 1e-4, 1.0, 1e-3, 1e-5, 1e-2, 1e-4]
    assert of(errors) == pytest.approx(10**-3.25, rel=1e-4)
    assert of([1e-4, 1e-2, 1.0]) == pytest.approx(1e-2, rel=1e-4)  # too few to leave any out


@pytest.mark.parametrize("tipped", [1, 2, 4])
def test_samples_that_tip_over_do_not_decide(tipped):
    usual = [1e-4] * 16
    assert of([*usual[tipped:], *[0.5] * tipped]) == pytest.approx(1e-4, rel=1e-4)
    assert of([1e-4] * 8 + [0.5] * 8) > 1e-3


def test_no_time_is_left_out():
    assert of([1e-6] * 4, [1e-2] * 4) == pytest.approx(1e-4, rel=1e-4)
    assert of([1e-6] * 2, [1e-3] * 4) == pytest.approx(1e-4, rel=1e-4)  # weighted by samples


def test_no_error_is_a_number():
    x = torch.randn(2, 3)
    assert 0 < sample_error([x], [x]) < 1e-19


def test_what_is_not_finite_has_no_error():
    x = torch.zeros(8, 3)
    assert math.isnan(sample_error([x.index_fill(0, torch.tensor([5]), math.nan)], [x]))
