import pytest
import torch
from torch import nn

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.lab.data import Cats
from tdquant.lab.metrics import FrechetDistance, Statistics
from tdquant.lab.metrics.frechet import HELDOUT_NETWORK, heldout_cats
from tdquant.lab.metrics.gaussians import frechet_distance


class Channels(nn.Module):
    """Six numbers an image: fast features with known statistics."""

    num_features = 6

    def forward(self, images):
        x = images.double()
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1).float()


def reference(images):
    return FrechetDistance(Statistics(torch.zeros(6), torch.eye(6), 2), Channels()).statistics(
        images
    )


@pytest.fixture(scope="module")
def cats():
    return Cats("train", 160).images


def test_distance_is_the_formula(cats):
    a, b = cats[:80], cats[80:] // 2
    found = FrechetDistance(reference(a), Channels())(b)
    f, g = (Channels()(v).double() for v in (a, b))
    mean = (f.mean(0) - g.mean(0)).square().sum()
    c, d = torch.cov(f.T), torch.cov(g.T)
    root = torch.linalg.eigvals(c @ d).sqrt().real.sum()
    assert found == pytest.approx(float(mean + c.trace() + d.trace() - 2 * root), rel=1e-4)


def test_zero_for_the_set_itself_and_grows_with_damage(cats):
    distance = FrechetDistance(reference(cats), Channels())
    assert distance(cats) == pytest.approx(0, abs=1e-3)
    noise = torch.randn(cats.shape, generator=torch.Generator().manual_seed(0))
    worse = [distance((cats.float() + s * noise).clamp(0, 255).byte()) for s in (5, 20, 60)]
    assert 0 < worse[0] < worse[1] < worse[2]


def test_batches_and_repetition_do_not_matter(cats):
    first = FrechetDistance(reference(cats), Channels(), batch=32)
    second = FrechetDistance(reference(cats), Channels(), batch=300)
    part = cats[:100]
    assert first(part) == pytest.approx(second(part), rel=1e-6)
    assert first(part) == first(part)


def test_too_few_images(cats):
    with pytest.raises(DataError, match="1 images"):
        FrechetDistance(reference(cats), Channels())(cats[:1])


def test_features_of_another_network_than_the_reference(cats):
    with pytest.raises(DataError, match="6 features an image, and 1280 of the reference"):
        FrechetDistance(heldout_cats(), Channels())(cats[:9])
    with pytest.raises(DataError, match="no reference set for this network"):
        FrechetDistance(features=Channels())


def test_to_uint8():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    assert torch.equal(to_uint8(to_uint8(x)), to_uint8(x))


def test_shipped_statistics_are_those_of_the_heldout_cats():
    stats = heldout_cats()
    assert stats.count == 5000
    assert stats.mean.shape == (1280,)
    distance = FrechetDistance(stats)
    assert distance.features.digest == HELDOUT_NETWORK
    heldout = Cats("heldout", 64).images
    noise = torch.randint(0, 256, heldout.shape, generator=torch.Generator().manual_seed(0)).byte()
    near, far = distance.statistics(heldout), distance.statistics(noise)
    assert frechet_distance(near, stats) < 0.5 * frechet_distance(far, stats)
    assert (near.mean - stats.mean).norm() < 0.2 * stats.mean.norm()
