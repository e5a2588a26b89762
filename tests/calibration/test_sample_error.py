import math

import torch

from tdquant.calibration.sample_error import sample_error


def test_one_sample_that_tips_over_does_not_decide():
    exact = [torch.zeros(3, 4), torch.zeros(1, 4)]
    results = [torch.full((3, 4), 0.1), torch.full((1, 4), 10.0)]
    assert math.isclose(sample_error(results, exact), (0.01**3 * 100) ** 0.25, rel_tol=1e-5)


def test_no_error_is_a_number():
    x = torch.randn(2, 3)
    assert 0 < sample_error([x], [x]) < 1e-19
