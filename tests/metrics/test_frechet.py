import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tdquant.data import Cats
from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.metrics import FrechetDistance, Statistics
from tdquant.metrics.features import EfficientNetLite0
from tdquant.metrics.frechet import cached_statistics, heldout_cats


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
    return Cats("train", 300).images


def test_distance_is_the_formula(cats):
    a, b = cats[:150], cats[150:] // 2
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
    assert first(part) == pytest.approx(first(part), rel=1e-12)


def test_statistics_round_trip(cats):
    stats = reference(cats)
    again = Statistics.from_bytes(stats.to_bytes())
    assert again.count == 300
    assert torch.allclose(again.mean, stats.mean, rtol=1e-6)
    assert torch.allclose(again.covariance, stats.covariance, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="unreadable"):
        Statistics.from_bytes(b"nonsense")


def test_cache_computes_once_and_survives_damage(cats, tmp_path, monkeypatch):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "cache"))
    distance, asked = FrechetDistance(reference(cats), Channels()), []

    def images():
        asked.append(1)
        return cats[:50]

    first = cached_statistics("cats-50", images, distance)
    second = cached_statistics("cats-50", images, distance)
    assert len(asked) == 1
    assert torch.allclose(first.mean, second.mean)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"cut")
    cached_statistics("cats-50", images, distance)
    assert len(asked) == 2
    cached_statistics("cats-other", images, distance)
    assert len(asked) == 3


def test_too_few_images(cats):
    with pytest.raises(DataError, match="1 images"):
        FrechetDistance(reference(cats), Channels())(cats[:1])


def test_to_uint8():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    assert torch.equal(to_uint8(to_uint8(x)), to_uint8(x))


def test_the_extractor_knows_imagenet():
    # 17 of 20 labelled photographs: a wrong normalisation or wrong weights would not get there.
    folder = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    from PIL import Image

    network, right, files = EfficientNetLite0(), 0, sorted(folder.glob("imagenet_*"))
    for file in files:
        label = int(re.search(r"_(\d+)$", file.stem)[1])
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        right += int(network.logits(pixels).argmax()) == label
    assert len(files) == 20
    assert right >= 16


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 8, 8).byte(), torch.zeros(1, 3, 8, 8)])
def test_images_that_the_extractor_cannot_take(images):
    with pytest.raises(DataError, match="uint8 RGB"):
        EfficientNetLite0()(images)


def test_shipped_statistics_are_those_of_the_heldout_cats():
    stats = heldout_cats()
    assert stats.count == 5000
    assert stats.mean.shape == (1280,)
    distance = FrechetDistance(stats)
    heldout = Cats("heldout", 128).images
    noise = torch.randint(0, 256, heldout.shape, generator=torch.Generator().manual_seed(0)).byte()
    near, far = distance(heldout), distance(noise)
    sample_mean = distance.statistics(heldout).mean
    assert near < 0.5 * far
    assert (sample_mean - stats.mean).norm() < 0.2 * stats.mean.norm()
