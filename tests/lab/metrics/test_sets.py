import warnings

import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import SET_METRICS, Statistics


def features(count, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_singular_covariance_is_told():
    reference = features(100)
    with pytest.warns(UserWarning, match="below 9 the covariance of 8"):
        SET_METRICS["frechet"].compute(features(8), reference)


@pytest.mark.parametrize("known", [lambda x: x, Statistics.of])
def test_a_singular_covariance_of_the_reference_is_told(known):
    with pytest.warns(UserWarning, match="to 8 reference images: below 9 the covariance of 8"):
        SET_METRICS["frechet"].compute(features(100), known(features(8)))


def test_statistics_of_an_unknown_number_are_taken_as_they_are():
    found = Statistics.of(features(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unknown = Statistics(found.mean, found.covariance, 0)
        distance = SET_METRICS["frechet"].compute(features(50, seed=1), unknown)
    assert distance == SET_METRICS["frechet"].compute(features(50, seed=1), found)


def test_statistics_stand_for_a_reference_where_they_can():
    x, y = features(50), features(80, seed=1)
    for name in ("frechet", "sfid"):
        metric = SET_METRICS[name]
        assert metric.compute(x, Statistics.of(y)) == metric.compute(x, y)
    for name in ("kid", "precision", "recall"):
        with pytest.raises(DataError, match="not their statistics"):
            SET_METRICS[name].compute(x, Statistics.of(y))


def test_everything_wrong_is_told_at_once():
    x = features(50)
    x[3, 1] = torch.nan
    with pytest.raises(DataError) as raised:
        SET_METRICS["precision"].compute(x, features(3, 5))
    assert raised.value.what == (
        "features of images are not all finite; 3 reference images, and 4 are needed; "
        "8 features an image, and 5 of the reference"
    )


def test_features_of_another_form():
    metric = SET_METRICS["frechet"]
    with pytest.raises(DataError, match="no reference set"):
        metric.compute(features(50))
    with pytest.raises(DataError, match=r"images have features \(50,\)"):
        metric.compute(features(50)[:, 0], features(50))
    with pytest.raises(DataError, match="int64"):
        SET_METRICS["is"].compute(torch.ones(50, 8).long())


def test_what_a_metric_does_not_need_it_does_not_look_at():
    metric, x = SET_METRICS["is"], features(50)
    assert metric.compute(x) == metric.compute(x, features(50, 3))
