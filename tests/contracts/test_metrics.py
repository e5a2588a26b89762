"""Every paired metric through one contract."""

import pytest
import torch

from tdquant.metrics import PAIRED

BEST = {"mse": min, "psnr": max, "ssim": max}


def test_every_registered_metric_is_here():
    assert set(BEST) == set(PAIRED)


@pytest.mark.parametrize("name", PAIRED)
def test_contract(name):
    metric, best = PAIRED[name], BEST[name]
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 16, 16, generator=rng) * 2 - 1
    b = torch.rand(3, 3, 16, 16, generator=rng) * 2 - 1
    value = metric(a, b)
    assert value.shape == (3,)
    assert value.isfinite().all()
    assert torch.allclose(metric(b, a), value, rtol=1e-4)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(metric(a[order], b[order]), value[order], rtol=1e-4)
    perfect = metric(a, a)
    assert all(best(p, v) == p for p, v in zip(perfect.tolist(), value.tolist(), strict=True))
