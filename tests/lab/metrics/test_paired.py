import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import mse, paired, psnr, ssim


def test_values_of_known_pairs():
    a = torch.zeros(2, 3, 16, 16)
    b = torch.full_like(a, 0.2)
    assert mse(a, b).tolist() == pytest.approx([0.04, 0.04])
    assert psnr(a, b)[0].item() == pytest.approx(20.0)
    assert psnr(a, a)[0].item() == float("inf")
    assert ssim(a, a).tolist() == pytest.approx([1, 1])


def test_each_pair_on_its_own():
    a, b = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    for metric in (mse, psnr, ssim):
        whole = metric(a, b)
        parts = torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(4)])
        assert torch.allclose(whole, parts, rtol=1e-4)
        assert torch.allclose(whole, metric(b, a), rtol=1e-4)


def test_psnr_and_mse_are_those_of_torchmetrics():
    from torchmetrics.functional import mean_squared_error
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = torch.rand(4, 3, 16, 16) * 2 - 1, torch.rand(4, 3, 16, 16) * 2 - 1
    exact = peak_signal_noise_ratio(a, b, (-1.0, 1.0), reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(a, b), exact, rtol=1e-5)
    assert float(mse(a, b).mean()) == pytest.approx(float(mean_squared_error(a, b)), rel=1e-5)


def test_values_outside_the_range_are_clamped():
    a = torch.ones(1, 3, 16, 16)
    assert mse(a, 5 * a).item() == 0


def test_more_noise_is_worse():
    a = torch.rand(2, 3, 32, 32) - 0.5
    noise = torch.randn(a.shape)
    results = [paired(a, a + s * noise) for s in (0.01, 0.05, 0.2)]
    assert results[0]["mse"] < results[1]["mse"] < results[2]["mse"]
    assert results[0]["psnr"] > results[1]["psnr"] > results[2]["psnr"]
    assert results[0]["ssim"] > results[1]["ssim"] > results[2]["ssim"]


@pytest.mark.parametrize("shapes", [((2, 3, 8, 8), (3, 3, 8, 8)), ((0, 3, 8, 8), (0, 3, 8, 8))])
def test_sets_that_do_not_pair(shapes):
    with pytest.raises(DataError, match="shapes"):
        paired(*(torch.zeros(s) for s in shapes))
