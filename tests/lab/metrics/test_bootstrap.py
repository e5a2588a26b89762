import math

import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import SET_METRICS, Statistics, bootstrap
from tdquant.lab.metrics.bootstrap import draws, interval, membership, subsets


def normal(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = normal(400)
    found = bootstrap(values, resamples=2000)
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_interval_holds_the_truth_as_often_as_its_level_says():
    held = 0
    for seed in range(200):
        found = bootstrap(normal(60, seed=seed), level=0.8, seed=seed)
        held += found.low <= 0 <= found.high
    assert 0.72 < held / 200 < 0.88


def test_a_constant_bias_of_the_draws_is_taken_away():
    resampled = 7 + torch.linspace(-1, 1, 201)
    found = interval(2.0, resampled, level=0.9)
    assert (found.low, found.high) == pytest.approx((1.1, 2.9))


def test_bounds_and_the_number_itself_are_kept():
    found = interval(0.98, torch.linspace(0.7, 0.9, 50), bounds=(0, 1))
    assert found.low < 0.98 < found.high == 1
    lopsided = interval(0.0, torch.tensor([0.0, 0, 0, 0, 100]), level=0.2)
    assert lopsided.low <= 0 <= lopsided.high


def test_no_interval_of_what_is_not_finite():
    found = interval(math.inf, torch.tensor([1.0, 2.0]))
    assert found.value == math.inf
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_draws_depend_on_the_seed_alone():
    assert torch.equal(draws(9, 4, 1), draws(9, 4, 1))
    assert not torch.equal(draws(9, 4, 1), draws(9, 4, 2))
    assert draws(9, 4, 1).shape == (4, 9)


def test_subsets_leave_a_tenth_out():
    kept, factor = subsets(50, 6, 0)
    assert kept.shape == (6, 45)
    assert membership(kept, 50).sum(1).tolist() == [45] * 6
    assert factor == pytest.approx(3)
    assert torch.equal(kept, subsets(50, 6, 0)[0])
    assert not torch.equal(kept[0], kept[1])
    assert subsets(3, 2, 0)[0].shape == (2, 2)


def test_subsets_tell_the_scatter_of_a_mean():
    values = normal(200)
    kept, factor = subsets(200, 3000, 0)
    scatter = factor * float(values[kept].mean(1).std())
    assert scatter == pytest.approx(float(values.std()) / 200**0.5, rel=0.06)


def test_requests_that_make_no_sense():
    with pytest.raises(DataError, match="1 resamples"):
        bootstrap(normal(5), resamples=1)
    with pytest.raises(DataError, match="0 images"):
        bootstrap(normal(0))
    with pytest.raises(DataError, match="level 95"):
        bootstrap(normal(5), level=95)


@pytest.mark.parametrize("name", ["frechet", "kid", "precision", "recall", "is"])
@pytest.mark.filterwarnings("ignore:kernel distance")
def test_intervals_are_as_wide_as_fresh_images_scatter(name):
    """Against the scatter over 30 sets that were drawn anew; errors are on the wide side."""
    metric, reference = SET_METRICS[name], normal(300, 8)
    if name == "frechet":
        reference = Statistics.of(reference)
    fresh = [normal(120, 8, seed=s) * 1.2 + 0.2 for s in range(1, 31)]
    values = torch.tensor([metric.compute(x, reference) for x in fresh])
    widths = []
    for x in fresh[:6]:
        found = metric.interval(x, reference, level=0.6827)
        widths.append((found.high - found.low) / 2)
    ratio = float(torch.tensor(widths).mean() / values.std())
    assert 0.7 < ratio < 1.9


def test_intervals_hold_their_number_and_repeat():
    metric = SET_METRICS["frechet"]
    x, reference = normal(100, 8), normal(300, 8, seed=1)
    found = metric.interval(x, reference, resamples=50)
    assert found == metric.interval(x, reference, resamples=50)
    assert found.value == metric.compute(x, reference)
    assert found.low < found.value < found.high
    kept, factor = subsets(100, 50, 2020)
    slow = torch.tensor([metric.compute(x[rows], reference) for rows in kept])
    exact = interval(found.value, slow, factor=factor)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-3)


@pytest.mark.filterwarnings("ignore:kernel distance", "ignore:Frechet distance")
@pytest.mark.parametrize("name", SET_METRICS)
def test_a_number_of_as_few_images_as_it_takes_has_no_interval(name):
    metric = SET_METRICS[name]
    x, reference = normal(metric.minimum, 4), normal(50, 4)
    found = metric.interval(x, reference)
    assert found.value == metric.compute(x, reference)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
