"""Every paired metric, metric of sets and feature network through one contract each."""

import pytest
import torch

from tdquant.errors import TDQError
from tdquant.lab.metrics import NETWORKS, PAIRED, SET_METRICS, Interval, Statistics, load_network
from tdquant.lab.metrics.features import KINDS

BEST = {"mse": min, "psnr": max, "ssim": max}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_registered_metric_is_here():
    assert set(BEST) == set(PAIRED)


@pytest.mark.parametrize("name", PAIRED)
def test_paired_metric(name):
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


@pytest.mark.filterwarnings("ignore:kernel distance", "ignore:Frechet distance")
@pytest.mark.parametrize("name", SET_METRICS)
def test_metric_of_sets(name):
    metric = SET_METRICS[name]
    assert metric.name == name
    assert metric.kind in KINDS
    x, reference = normal(60, 6), normal(80, 6, seed=1)
    value = metric.compute(x, reference, seed=3)
    assert isinstance(value, float)
    assert value == metric.compute(x, reference, seed=3)
    assert metric.bounds[0] <= value <= metric.bounds[1]
    assert value == pytest.approx(metric.compute(x.double(), reference.double(), seed=3), rel=1e-5)
    found = metric.interval(x, reference, seed=3, resamples=20)
    assert isinstance(found, Interval)
    assert found.value == value
    assert metric.bounds[0] <= found.low < value < found.high <= metric.bounds[1]
    with pytest.raises(TDQError, match=f"{metric.minimum - 1} images, and {metric.minimum}"):
        metric.compute(x[: metric.minimum - 1], reference)
    least = metric.compute(x[: metric.minimum], reference[: metric.minimum])
    assert metric.bounds[0] <= least <= metric.bounds[1]


@pytest.mark.filterwarnings("ignore:kernel distance")
@pytest.mark.parametrize("name", [n for n, m in SET_METRICS.items() if m.reference])
def test_metric_against_a_reference(name):
    metric = SET_METRICS[name]
    reference = normal(120, 6, seed=1)
    values = [metric.compute(normal(90, 6) + shift, reference) for shift in (0, 1, 100)]
    assert values == sorted(values, reverse=metric.better == "higher")
    assert values[0] != values[2]
    with pytest.raises(TDQError, match="no reference set"):
        metric.compute(reference)
    with pytest.raises(TDQError, match="6 features an image, and 5"):
        metric.compute(reference, reference[:, :5])
    if metric.summarized:
        known = Statistics.of(reference)
        assert metric.interval(normal(90, 6), known, resamples=5).value == pytest.approx(values[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_feature_network(name):
    try:
        network = load_network(name)
    except TDQError as error:
        pytest.skip(str(error))  # the weights or the package are not on this machine
    images = torch.randint(
        0, 256, (3, 3, 24, 20), generator=torch.Generator().manual_seed(0)
    ).byte()
    found = network.extract(images, network.kinds)
    assert network.name == name
    assert set(found) == set(network.kinds) <= set(KINDS)
    for kind, value in found.items():
        assert value.ndim == 2
        assert len(value) == 3
        assert value.dtype == torch.float32
        assert torch.allclose(network.extract(images, (kind,))[kind], value)
        alone = network.extract(images[1:2], (kind,))[kind]
        assert torch.allclose(alone, value[1:2], atol=1e-3 * float(value.abs().max()))
    assert torch.equal(network(images), network.extract(images)["pooled"])
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    titles = {metric.title(network) for metric in SET_METRICS.values()}
    assert len(titles) == len(SET_METRICS)
    assert all(network.standard or network.title in title for title in titles)
