import warnings

import pytest
import torch

from tdquant.lab.metrics import kernel_distance as module
from tdquant.lab.metrics.bootstrap import subsets
from tdquant.lab.metrics.kernel_distance import kernel_distance, resampled_kernel_distance


def kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def features(count, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=rng, dtype=torch.float64) + shift


def unbiased(x, y):
    """All pairs of different images, in plain loops' terms."""
    k = [kernel(a, b) for a, b in ((x, x), (y, y), (x, y))]
    n, m = len(x), len(y)
    off = [k[0][~torch.eye(n).bool()].mean(), k[1][~torch.eye(m).bool()].mean()]
    return float(off[0] + off[1] - 2 * k[2].mean())


@pytest.mark.parametrize("size", [40, 100])
def test_equal_to_torch_fidelity(fidelity, size):
    x, y = features(100, 0), features(130, 1, 0.3)
    kid = fidelity("metric_kid")
    exact = kid.kid_features_to_metric(
        x, y, kid_subsets=30, kid_subset_size=size, rng_seed=7, verbose=False
    )
    found = kernel_distance(x, y, 7, subsets=30, size=size)
    assert found == pytest.approx(exact[kid.KEY_METRIC_KID_MEAN], rel=1e-4)


def test_unbiased_for_equal_distributions_and_positive_for_others():
    values = [unbiased(features(40, 2 * s), features(40, 2 * s + 1)) for s in range(200)]
    mean, scatter = torch.tensor(values).mean(), torch.tensor(values).std() / 200**0.5
    assert abs(float(mean)) < 3 * float(scatter)
    assert kernel_distance(features(200, 0), features(200, 1, 0.5), 0, size=100) > 0.05


def test_small_sets_have_smaller_subsets_and_say_so():
    x, y = features(30, 0), features(50, 1)
    with pytest.warns(UserWarning, match="subsets of 30 images, not 1000"):
        kernel_distance(x, y, 0, subsets=2)
    with pytest.warns(UserWarning, match="30 images"):
        assert kernel_distance(x, x, 0, subsets=2) == pytest.approx(
            unbiased(x, x), rel=1e-9
        )  # subsets are the whole sets
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel_distance(x, y, 0, subsets=2, size=30)


def test_subsets_leave_out_an_image_against_itself(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 7)
    x, y = features(20, 0), features(25, 1, 0.3)
    kept, _ = subsets(20, 6, 0)
    found = resampled_kernel_distance(x, y, kept)
    exact = [unbiased(x[row], y) for row in kept]
    assert found.tolist() == pytest.approx(exact, rel=1e-9)
    unmoved = resampled_kernel_distance(x, y, torch.arange(20)[None])
    assert float(unmoved) == pytest.approx(unbiased(x, y), rel=1e-9)
