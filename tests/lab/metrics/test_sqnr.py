import math

import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import sqnr_over_time
from tdquant.lab.metrics.sqnr import mean_sqnr


def test_known_noise_at_each_time():
    def exact(x, t):
        return x

    def noisy(x, t):
        return x * (1.1 if t < 500 else 1.01)

    calls = [(torch.randn(4, 3), torch.tensor(t)) for t in (10, 10, 900)]
    found = sqnr_over_time(noisy, exact, calls)
    assert found[10] == pytest.approx(20, abs=1e-3)
    assert found[900] == pytest.approx(40, abs=1e-3)
    assert mean_sqnr(found) == pytest.approx(30, abs=1e-3)
    assert sqnr_over_time(exact, exact, calls)[10] == math.inf


def test_no_calls():
    with pytest.raises(DataError, match="no calls"):
        sqnr_over_time(lambda x, t: x, lambda x, t: x, [])
