import pytest
import torch

from tdquant.lab.metrics import precision_recall as module
from tdquant.lab.metrics.bootstrap import subsets
from tdquant.lab.metrics.precision_recall import (
    nearest,
    precision,
    recall,
    resampled_precision,
    resampled_recall,
)


def features(count, seed=0, scale=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 4, generator=rng, dtype=torch.float64) + shift


@pytest.mark.parametrize("rows", [7, 1024])
def test_equal_to_torch_fidelity(fidelity, rows, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", rows)
    x, y = features(90), features(70, 1, 0.7)
    exact = fidelity("metric_prc").calculate_precision_recall_full(x, y, 3)
    assert (precision(x, y), recall(x, y)) == pytest.approx(exact[:2])
    assert 0 < precision(x, y) < recall(x, y) < 1 or 0 < recall(x, y) < precision(x, y) < 1


def test_the_same_set_and_disjoint_clusters():
    x = features(50)
    assert precision(x, x) == recall(x, x) == 1
    assert precision(x, x + 1000) == recall(x, x + 1000) == 0


def test_narrow_images_are_good_and_alike_wide_ones_the_reverse():
    narrow, reference = features(200, 1, 0.2), features(200)
    assert precision(narrow, reference) > 0.95
    assert recall(narrow, reference) < 0.3
    assert precision(narrow, reference) == recall(reference, narrow)


def test_order_does_not_matter():
    x, y = features(60), features(60, 1)
    assert precision(x.flip(0), y) == precision(x, y.flip(0)) == precision(x, y)


def test_nearest_neighbours_are_others():
    distances, indices = nearest(torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double(), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_subsets_have_the_shares_of_their_images():
    x, y = features(60), features(50, 1, 1.2)
    kept, _ = subsets(60, 10, 0)
    exact = [recall(x[row], y) for row in kept]
    assert resampled_recall(x, y, kept).tolist() == pytest.approx(exact)
    exact = [precision(x[row], y) for row in kept]
    assert resampled_precision(x, y, kept).tolist() == pytest.approx(exact)
