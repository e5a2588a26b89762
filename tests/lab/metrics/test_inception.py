"""The real code path of the Inception network, on random weights: no package has its own."""

import hashlib
import io

import pytest
import torch
from safetensors.torch import save_file

from tdquant.errors import DataError, MissingDependencyError
from tdquant.lab.metrics import SET_METRICS, inception, load_network


@pytest.fixture(scope="module")
def code(fidelity):
    return fidelity("feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def state(code):
    class Unloaded(code.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    return Unloaded("random", ["2048"], feature_extractor_weights_path=nothing).state_dict()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_network("inception", file)


IMAGES = torch.randint(0, 256, (2, 3, 20, 32), generator=torch.Generator().manual_seed(0)).byte()


def test_features_are_those_of_torch_fidelity(code, file, network):
    exact = code.FeatureExtractorInceptionV3(
        "exact", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
    )
    maps = []
    exact.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, o: maps.append(o))
    pooled, logits = exact(IMAGES)
    found = network.extract(IMAGES, network.kinds)
    assert torch.allclose(found["pooled"], pooled, rtol=1e-5)
    assert torch.allclose(found["logits"], logits, rtol=1e-5)
    assert torch.equal(found["spatial"], maps[0][:, :7].flatten(1))
    assert found["spatial"].shape == (2, 2023)
    assert found["logits"].shape == (2, 1008)
    assert torch.equal(network(IMAGES), found["pooled"])


def test_only_the_published_weights_give_a_fid(file, network, monkeypatch):
    metric = SET_METRICS["frechet"]
    assert not network.standard
    assert metric.title(network) == f"Frechet Inception v3 (weights {network.digest[:8]}) distance"
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "CHECKSUM", checksum[:8])
    published = load_network("inception", file)
    assert published.standard
    assert published.title == "Inception v3 (FID)"
    titles = [m.title(published) for m in SET_METRICS.values()]
    assert titles[:4] == ["FID", "sFID", "KID", "Inception Score"]
    assert published.digest == network.digest


def test_safetensors_hold_the_same_weights(state, network, tmp_path):
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    assert load_network("inception", tmp_path / "w.safetensors").digest == network.digest


def test_weights_are_found_in_either_cache_by_either_name(
    code, file, network, tmp_path, monkeypatch
):
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    names = (f"weights-inception-2015-12-05-{checksum}.pth", f"pt_inception-{checksum}.pth")
    monkeypatch.setattr(inception, "FILES", names)
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DataError, match="not found") as raised:
        load_network("inception")
    assert "download=True" in raised.value.fix
    assert str(tmp_path / "own") in raised.value.where
    place = tmp_path / "hub" / "checkpoints" / names[1]
    place.parent.mkdir(parents=True)
    place.symlink_to(file)
    assert load_network("inception").digest == network.digest
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / names[0]).write_bytes(b"cut short")
    with pytest.raises(DataError, match="damaged"):
        load_network("inception")


def test_a_download_is_only_made_when_asked_for_and_lands_whole(
    code, file, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(inception, "FILES", ("weights-00000000.pth",))
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def fetch(url, target, hash_prefix):
        asked.append((url, hash_prefix))
        with open(target, "wb") as out:
            out.write(b"half" if len(asked) == 1 else file.read_bytes())
        if len(asked) == 1:
            raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(DataError, match="could not be downloaded"):
        load_network("inception", download=True)
    assert list((tmp_path / "own").iterdir()) == []
    assert load_network("inception", download=True).digest == network.digest
    assert asked[0] == (code.URL_INCEPTION_V3, "00000000")
    assert code.URL_INCEPTION_V3.endswith("weights-inception-2015-12-05-6726825d.pth")


def test_weights_of_another_network(fidelity, tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="another network"):
        load_network("inception", tmp_path / "other.pth")


def test_without_torch_fidelity(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingDependencyError, match=r"tdquant\[inception\]"):
        load_network("inception", tmp_path / "none.pth")
