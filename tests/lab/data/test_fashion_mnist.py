import gzip

import numpy as np
import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data.fashion_mnist import fashion_mnist, read_idx
from tests.lab.data.written import idx, write_fashion_mnist


@pytest.mark.parametrize("compressed", [False, True])
def test_padding_keeps_every_pixel(tmp_path, compressed):
    images, labels = write_fashion_mnist(tmp_path, compressed)
    found = fashion_mnist(tmp_path)
    assert found.labels.tolist() == labels.tolist()
    assert found[0].shape == (1, 32, 32)
    inner = found.images[:, 0, 2:30, 2:30]
    assert torch.equal(inner, torch.from_numpy(images))
    assert int(found.images.sum(dtype=torch.int64)) == int(images.sum(dtype=np.int64))
    assert found[0][0, 0, 0] == -1


def test_other_sizes_and_channels(tmp_path):
    images, _ = write_fashion_mnist(tmp_path)
    assert torch.equal(fashion_mnist(tmp_path, size=28).images[:, 0], torch.from_numpy(images))
    odd = fashion_mnist(tmp_path, size=33, channels=3)
    assert odd[0].shape == (3, 33, 33)
    assert torch.equal(odd[0][0], odd[0][2])
    assert fashion_mnist(tmp_path, size=16, fit="resize")[0].shape == (1, 16, 16)


def test_splits_differ(tmp_path):
    write_fashion_mnist(tmp_path)
    train, test = fashion_mnist(tmp_path), fashion_mnist(tmp_path, "test")
    assert not torch.equal(train.images, test.images)


def test_all_wrong_options_are_told(tmp_path):
    with pytest.raises(DataError, match=r"split='val'(.|\n)*channels=2(.|\n)*size=27"):
        fashion_mnist(tmp_path, split="val", channels=2, size=27)
    with pytest.raises(DataError, match="fit='crop'"):
        fashion_mnist(tmp_path, fit="crop")


def test_absent_files_say_where_to_put_them(tmp_path):
    with pytest.raises(DataError, match="zalandoresearch"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x01\x00",
        idx(np.zeros((2, 3), np.uint8)),
        b"\x00\x00\x0d\x01" + idx(np.zeros(4, np.uint8))[4:],
        idx(np.zeros(4, np.uint8))[:-1],
        idx(np.zeros(4, np.uint8)) + b"\x00",
        b"\x00\x00\x08\x01\xff\xff\xff\xff",
    ],
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "labels").write_bytes(content)
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content))
    for name in ("labels", "labels.gz"):
        with pytest.raises(DataError, match=name):
            read_idx(tmp_path / name, 1)


def test_damaged_compression(tmp_path):
    whole = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    for content in (whole[:-20], b"not gzip", whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / "labels.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"labels\.gz"):
            read_idx(tmp_path / "labels.gz", 1)
