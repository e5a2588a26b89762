"""What every data set promises."""

import pickle

import pytest
import torch

from tdquant.lab.data import DATASETS, make_dataset
from tdquant.training.order import loader
from tests.lab.data.written import (
    encoded,
    write_cifar10,
    write_fashion_mnist,
    write_images,
    write_lmdb,
)


def options(name, root):
    """Options of a tiny data set of this name, written into ``root``."""
    if name in ("cats", "robots"):
        return {"split": "heldout", "count": 6}
    if name == "cifar10":
        write_cifar10(root)
        return {"root": root}
    if name == "fashion-mnist":
        write_fashion_mnist(root)
        return {"root": root}
    if name == "folder":
        write_images(root)
        return {"root": root}
    if name == "lsun":
        write_lmdb(root / "lmdb", {b"key%d" % i: encoded(i, form="webp") for i in range(5)})
        return {"data_root": root / "lmdb"}
    raise NotImplementedError(name)


@pytest.fixture(params=sorted(DATASETS))
def given(request, tmp_path):
    return request.param, options(request.param, tmp_path)


def test_items_are_images(given):
    name, opts = given
    dataset = make_dataset(name, size=32, **opts)
    assert dataset.name == name
    assert len(dataset) > 3
    for i in (0, len(dataset) - 1):
        item = dataset[i]
        assert item.dtype == torch.float32
        assert item.shape[0] in (1, 3)
        assert item.shape[1:] == (32, 32)
        assert item.min() >= -1
        assert item.max() <= 1
        assert item.std() > 0.01
    if dataset.labels is not None:
        assert dataset.labels.dtype == torch.int64
        assert len(dataset.labels) == len(dataset)


def test_items_do_not_change_and_end_where_the_length_says(given):
    name, opts = given
    dataset, again = make_dataset(name, **opts), make_dataset(name, **opts)
    assert torch.equal(dataset[2], dataset[2])
    assert torch.equal(dataset[2], again[2])
    assert torch.equal(dataset[-1], dataset[len(dataset) - 1])
    assert not torch.equal(dataset[0], dataset[1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_survives_pickling_and_reading_in_workers(given):
    name, opts = given
    dataset = make_dataset(name, **opts)
    dataset[0]  # whatever opens when first read is open now, as when a trainer looks at one item
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1], dataset[1])
    here, there = (next(iter(loader(dataset, 4, workers=workers))) for workers in (0, 1))
    assert torch.equal(here, there)


def test_flips_are_left_to_training(given):
    name, opts = given
    plain, flipped = make_dataset(name, **opts), make_dataset(name, flip_p=1.0, **opts)
    assert (plain.flip, flipped.flip) == (0.0, 1.0)
    assert torch.equal(plain[0], flipped[0])
