"""AlexNet and VGG-16 on random weights; on the published ones where the package is installed."""

import importlib.util
import re

import pytest
import torch
import torch.nn.functional as F

from tdquant.errors import DataError, MissingDependencyError
from tdquant.lab.evaluation import judges
from tdquant.lab.metrics import SET_METRICS, load_network
from tdquant.lab.metrics.shift_tolerant import AlexNet, Blur, Vgg16

IMAGES = torch.randint(0, 256, (3, 3, 20, 32), generator=torch.Generator().manual_seed(0)).byte()
BINOMIAL = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
# Where the published files have the layers of each slice.
SLICES = {AlexNet: (3, 7, 11, 13, 15), Vgg16: (4, 10, 18, 26, 34)}


def random_file(kind, path):
    """A file as the package has it: keys by slices, and heads that are not ours."""
    torch.manual_seed(0)
    layers = kind.build(None)
    for layer in layers:
        if isinstance(layer, Blur):
            layer.filt.copy_(BINOMIAL.expand_as(layer.filt))
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    state = {"scaling_layer.shift": torch.zeros(3), "lin0.model.1.weight": torch.ones(1, 64, 1, 1)}
    for name, value in layers.state_dict().items():
        place = int(name.partition(".")[0])
        part = next(i for i, end in enumerate(SLICES[kind]) if place < end)
        state[f"net.slice{part + 1}.{name}"] = value
    torch.save(state, path)
    return state


@pytest.fixture(params=[AlexNet, Vgg16], ids=lambda kind: kind.name)
def kind(request):
    return request.param


def test_features_are_those_of_the_layers_one_by_one(kind, tmp_path):
    state = random_file(kind, tmp_path / "w.pth")
    network = load_network(kind.name, tmp_path / "w.pth")
    weights = {re.sub(r"net\.slice\d+\.", "", n): v for n, v in state.items() if "net." in n}
    places = sorted({int(name.partition(".")[0]) for name in weights})
    x = network.prepare(IMAGES)
    for place in places:
        pool = 3 if kind is AlexNet else 2
        if f"{place}.filt" in weights:
            # The first filter of AlexNet comes before its ReLU, all others behind max pooling.
            if (kind, place) != (AlexNet, 1):
                x = F.max_pool2d(x, pool, 1)
            kernel = weights[f"{place}.filt"]
            x = F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), kernel, groups=len(kernel))
            x = x[:, :, ::2, ::2]
            x = x.relu() if (kind, place) == (AlexNet, 1) else x
        else:
            kernel = weights[f"{place}.weight"]
            same = 2 if kernel.shape[-1] == 11 else kernel.shape[-1] // 2
            x = F.conv2d(x, kernel, weights[f"{place}.bias"], padding=same)
            x = x if (kind, place) == (AlexNet, 0) else x.relu()
    found = network(IMAGES)
    assert found.shape == (3, kind.num_features)
    assert torch.allclose(found, x.mean((2, 3)), rtol=1e-3, atol=1e-5)
    assert len({tuple(row.tolist()) for row in found}) == 3


def test_other_weights_than_the_published_ones_are_named_in_titles(kind, tmp_path):
    random_file(kind, tmp_path / "w.pth")
    network = load_network(kind.name, tmp_path / "w.pth")
    assert f"(weights {network.digest[:8]})" in SET_METRICS["frechet"].title(network)
    assert not network.standard


def test_metrics_of_classes_and_maps_are_refused(tmp_path):
    random_file(AlexNet, tmp_path / "w.pth")
    network = load_network("alexnet", tmp_path / "w.pth")
    chosen = judges.choose_metrics(None, network, "cats-heldout", 100)
    assert [metric.name for metric in chosen] == ["frechet", "kid", "precision", "recall"]
    with pytest.raises(DataError, match="logits"):
        judges.choose_metrics(["is"], network, None, 100)


def test_files_of_other_networks(kind, tmp_path):
    torch.save({"net.slice1.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="another network") as raised:
        load_network(kind.name, tmp_path / "w.pth")
    assert kind.file in raised.value.fix


def test_nothing_in_a_file_is_called(kind, tmp_path):
    class Call:
        def __reduce__(self):
            return open, (str(tmp_path / "called"), "w")

    torch.save({"net.slice1.0.weight": Call()}, tmp_path / "w.pth")
    with pytest.raises(DataError):
        load_network(kind.name, tmp_path / "w.pth")
    assert not (tmp_path / "called").exists()


def test_without_the_package_the_error_says_what_to_install(kind, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stlpips_pytorch", None)
    with pytest.raises(MissingDependencyError) as raised:
        load_network(kind.name)
    assert raised.value.fix == 'pip install "tdquant[vgg]"'


@pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="needs tdquant[vgg]"
)
def test_the_published_weights(kind):
    network = load_network(kind.name)
    assert network.title == kind.title
    filters = [layer.filt for layer in network.layers if isinstance(layer, Blur)]
    assert filters
    for found in filters:
        assert torch.allclose(found, BINOMIAL.expand_as(found), atol=1e-6)
