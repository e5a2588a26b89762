import numpy as np
import pytest
import torch

from tdquant.lab.metrics.bootstrap import subsets
from tdquant.lab.metrics.inception_score import inception_score, resampled_inception_score


def logits(count=105, classes=12, scale=2.0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def test_equal_to_torch_fidelity(fidelity):
    isc = fidelity("metric_isc")
    exact = isc.isc_features_to_metric(logits(), 10, True, 7)
    assert inception_score(logits(), 7) == pytest.approx(exact[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)


def test_the_extremes():
    sure = 1000 * torch.eye(5).repeat(20, 1)
    assert inception_score(sure, 0, parts=1) == pytest.approx(5)
    assert inception_score(torch.zeros(100, 5), 0) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(100, 1), 0) == pytest.approx(1)


def test_subsets_leave_images_in_their_parts():
    (kept, _), x = subsets(105, 6, 0), logits()
    order = np.random.RandomState(3).permutation(105)
    found = resampled_inception_score(x, kept, 3)
    for row, value in zip(kept, found.tolist(), strict=True):
        scores = []
        for i in range(10):
            part = torch.from_numpy(order[i * 105 // 10 : (i + 1) * 105 // 10])
            own = part[torch.isin(part, row)]
            scores.append(inception_score(x[own], 0, parts=1))
        assert value == pytest.approx(sum(scores) / 10, rel=1e-6)


def test_a_part_that_is_left_out_whole_does_no_harm():
    x = logits(20)
    assert resampled_inception_score(x, torch.tensor([[0, 1, 2]]), 0).isfinite().all()
