"""LPIPS on random backbones: torchvision's weights are no package; the learned heads are."""

import copy

import pytest
import torch

from tdquant.errors import DataError
from tdquant.files.digests import file_digest
from tdquant.lab.metrics import Lpips
from tdquant.lab.metrics.perceptual import BACKBONES, _features


def weights(folder, backbone="alex"):
    """A file as torchvision's, with a classifier that LPIPS leaves out."""
    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in _features(BACKBONES[backbone]).state_dict().items()}
    file = folder / f"{backbone}.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    return file


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return Lpips(weights(tmp_path_factory.mktemp("weights")))


def pair(count=3, channels=3, side=40):
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(count, channels, side, side, generator=rng) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=rng)).clamp(-1, 1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_to_torchmetrics_on_the_same_backbone(backbone, tmp_path, monkeypatch):
    from torchmetrics.functional.image import lpips as exact

    found = Lpips(weights(tmp_path, backbone), backbone)
    monkeypatch.setattr(exact, "_get_tv_model_features", lambda *_: found.features)
    network = exact._LPIPS(net=backbone).eval()
    a, b = pair()
    assert torch.allclose(found(a, b), network(a, b).flatten(), rtol=1e-4)


def test_zero_for_equal_images_symmetric_and_each_pair_on_its_own(metric):
    a, b = pair(20)
    assert metric(a, a).tolist() == [0] * 20
    value = metric(a, b)
    assert value.min() > 0
    assert torch.allclose(metric(b, a), value, rtol=1e-4)
    assert torch.allclose(metric(a[17:18], b[17:18]), value[17:18], rtol=1e-4)


def test_more_noise_is_further(metric):
    a, _ = pair()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    near, far = (metric(a, a + s * noise).mean() for s in (0.05, 0.4))
    assert 0 < near < far


def test_grey_and_smallest_images(metric):
    a, b = pair(channels=1)
    assert torch.equal(metric(a, b), metric(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))
    assert metric(*pair(side=31)).shape == (3,)
    with pytest.raises(DataError, match="31 pixels or more"):
        metric(*pair(side=30))
    with pytest.raises(DataError, match="shape"):
        metric(*pair(channels=2))


def test_smallest_images_of_vgg(tmp_path):
    vgg = Lpips(weights(tmp_path, "vgg"), "vgg")
    assert vgg(*pair(1, side=16)).shape == (1,)
    with pytest.raises(DataError, match="16 pixels or more"):
        vgg(*pair(1, side=15))


def test_the_name_tells_weights_that_are_not_the_published_ones(metric, tmp_path, monkeypatch):
    assert not metric.standard
    assert metric.title == f"LPIPS (weights {metric.digest[:8]})"
    file = weights(tmp_path)
    published = BACKBONES["alex"]._replace(file=f"alexnet-owt-{file_digest(file)[:8]}.pth")
    monkeypatch.setitem(BACKBONES, "alex", published)
    found = Lpips(file)
    assert found.standard
    assert found.title == "LPIPS"
    assert found.digest == metric.digest


def test_a_digest_is_of_all_weights(metric):
    other = copy.deepcopy(metric)
    del other.digest
    other.heads[0].data[0] += 1
    assert other.digest != metric.digest


def test_weights_that_are_missing_or_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"alexnet-owt-7be5be79.pth were not found"):
        Lpips()
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"other")
    with pytest.raises(DataError, match="damaged"):
        Lpips()
    with pytest.raises(DataError, match="another network"):
        Lpips(weights(tmp_path, "vgg"), "alex")
    with pytest.raises(DataError, match="one of alex, vgg"):
        Lpips(backbone="squeeze")
