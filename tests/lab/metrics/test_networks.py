import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import NETWORKS, features_of, load_network
from tdquant.lab.metrics.features import KINDS, rgb, spatial_slice


@pytest.fixture(scope="module")
def network():
    return load_network("efficientnet-lite0")


def pictures(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def test_unknown_name_and_weights_that_nobody_asked_for(tmp_path):
    with pytest.raises(DataError, match="efficientnet-lite0, inception"):
        load_network("resnet")
    with pytest.raises(DataError, match="brings its own"):
        load_network("efficientnet-lite0", tmp_path / "file.pth")
    assert set(NETWORKS) == {"efficientnet-lite0", "inception", "alexnet", "vgg16"}


def test_the_extractor_knows_imagenet(network):
    # 17 of 20 labelled photographs: a wrong normalisation or wrong weights would not get there.
    folder = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    from PIL import Image

    right, files = 0, sorted(folder.glob("imagenet_*"))
    for file in files:
        label = int(re.search(r"_(\d+)$", file.stem)[1])
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        right += int(network.extract(pixels, ("logits",))["logits"].argmax()) == label
    assert len(files) == 20
    assert right >= 16


def test_logits_are_those_of_the_whole_network(network):
    images = pictures(3, 3, 40, 30)
    found = network.extract(images, ("logits",))["logits"]
    assert torch.allclose(found, network.network(network.prepare(images)), atol=1e-4)


def test_spatial_features_are_the_first_channels_of_the_last_large_map(network):
    images = pictures(2, 3, 32, 32)
    maps = []
    blocks = network.network._blocks
    handles = [b.register_forward_hook(lambda m, i, o: maps.append(o)) for b in blocks]
    spatial = network.extract(images, ("spatial",))["spatial"]
    [handle.remove() for handle in handles]
    large = [m for m in maps if m.shape[-1] == 14]
    assert torch.equal(spatial, large[-1][:, :7].flatten(1))


def test_kinds_that_are_not_there(network):
    with pytest.raises(DataError, match="no features 'depth'"):
        network.extract(pictures(1, 3, 8, 8), ("pooled", "depth"))


def test_digest_is_of_the_weights(network):
    again = load_network("efficientnet-lite0")
    assert again.digest == network.digest
    changed = load_network("efficientnet-lite0")
    with torch.no_grad():
        changed.network._fc.bias[0] += 1e-3
    assert changed.digest != network.digest
    assert re.fullmatch("[0-9a-f]{16}", network.digest)


def test_grey_images_are_colour_images_of_three_equal_channels(network):
    grey = pictures(2, 1, 28, 28)
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 2, 8, 8).byte(),
        torch.zeros(1, 4, 8, 8).byte(),
        torch.zeros(3, 8, 8).byte(),
        torch.zeros(0, 3, 8, 8).byte(),
        torch.zeros(1, 3, 0, 8).byte(),
    ],
)
def test_images_that_are_refused(images):
    with pytest.raises(DataError, match="a network"):
        rgb(images, "a network")


def test_many_images_batch_by_batch(network):
    images = pictures(5, 3, 16, 16)
    whole = network.extract(images, KINDS)
    parts = features_of(images, network, KINDS, batch=2)
    for kind in KINDS:
        assert torch.allclose(whole[kind], parts[kind], atol=1e-4)
    from_floats = features_of(images.float() / 127.5 - 1, network)
    assert torch.allclose(from_floats["pooled"], whole["pooled"], atol=1e-5)
    with pytest.raises(DataError, match="no images"):
        features_of(images[:0], network)


def test_autocast_of_the_caller_changes_nothing(network):
    images = pictures(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, network(images))


def test_a_slice_leaves_no_hook_behind_when_the_pass_fails():
    layer = torch.nn.Conv2d(1, 8, 1)
    with pytest.raises(RuntimeError), spatial_slice(layer, 2):
        layer(torch.zeros(1, 3, 4, 4))
    assert not layer._forward_hooks
