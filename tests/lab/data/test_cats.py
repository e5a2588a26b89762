import numpy as np
import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data.cats import Cats, combinations, render


def keys(images):
    return {i.numpy().tobytes() for i in images}


def test_combinations_of_the_art():
    assert combinations(32) == 360_000


def test_splits_are_disjoint_distinct_and_fixed():
    train, heldout = Cats("train", 3000), Cats("heldout", 3000)
    assert len(keys(train.images)) == len(keys(heldout.images)) == 3000
    assert not keys(train.images) & keys(heldout.images)
    assert torch.equal(train.images, Cats("train", 3000).images)
    assert torch.equal(train.images[:100], Cats("train", 100).images)


def test_items_are_float_images():
    cats = Cats("heldout", 10, size=16)
    assert len(cats) == 10
    assert cats[3].shape == (3, 16, 16)
    assert cats[3].dtype == torch.float32
    assert cats[3].min() >= -1
    assert cats[3].max() <= 1
    assert torch.stack([cats[i] for i in range(10)]).std() > 0.2


def test_layers_go_over_each_other_on_white():
    pictures = render(np.arange(0, 360_000, 40_001), 32)
    assert pictures.dtype == np.uint8
    assert (pictures[:, :, 0, 0] == 255).all()  # corners are background
    assert len({p.tobytes() for p in pictures}) == len(pictures)


@pytest.mark.parametrize("options", [{"split": "test"}, {"count": 0}, {"size": 0}])
def test_wrong_options(options):
    with pytest.raises(DataError):
        Cats(**options)


def test_more_than_there_are():
    with pytest.raises(DataError, match="distinct cats"):
        Cats("heldout", 20_001, size=4)
