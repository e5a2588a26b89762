import os
import pickle

import numpy as np
import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data.cifar10 import cifar10, read_pickle
from tests.lab.data.written import records, write_cifar10


@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("inside", [False, True])
def test_both_archives_hold_the_same(tmp_path, form, inside):
    folder = write_cifar10(tmp_path, form)
    train = cifar10(folder if inside else tmp_path)
    test = cifar10(folder if inside else str(tmp_path), split="test")
    expected = np.concatenate([records(seed)[0] for seed in range(1, 6)])
    assert train.images.shape == (20, 3, 32, 32)
    assert torch.equal(train.images.reshape(20, -1), torch.from_numpy(expected))
    assert train.labels.tolist() == [k for seed in range(1, 6) for k in records(seed)[1]]
    assert torch.equal(test.images.reshape(4, -1), torch.from_numpy(records(6)[0]))
    assert torch.equal(train[3], train.images[3] / 127.5 - 1)


def test_planes_are_red_green_blue_row_by_row(tmp_path):
    folder = write_cifar10(tmp_path, "bin")
    planes = np.arange(3 * 32 * 32, dtype=np.uint32) // 1024 * 80
    (folder / "test_batch.bin").write_bytes(b"\x07" + planes.astype(np.uint8).tobytes())
    test = cifar10(tmp_path, "test")
    assert test.labels.tolist() == [7]
    assert [test.images[0, c].unique().item() for c in range(3)] == [0, 80, 160]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
def test_batches_pickled_again_by_python_3(tmp_path, protocol, key):
    folder = write_cifar10(tmp_path)
    data, labels = records(9)
    batch = {key("data"): data, key("labels"): labels, key("batch_label"): b"x", key("n"): 1.5}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    assert torch.equal(cifar10(tmp_path, "test").images.flatten(1), torch.from_numpy(data))


def test_absent_data_says_where_to_put_them(tmp_path):
    with pytest.raises(DataError, match="extract it in") as caught:
        cifar10(tmp_path / "none")
    assert "cs.toronto.edu" in str(caught.value)
    with pytest.raises(DataError, match="no split 'val'"):
        cifar10(tmp_path, split="val")


def test_an_incomplete_archive_is_not_used(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_5").unlink()
    with pytest.raises(DataError, match="incomplete: no data_batch_3, data_batch_5"):
        cifar10(tmp_path)
    assert len(cifar10(tmp_path, "test")) == 4


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Runs(os.mkdir, "ran"),
        Runs(eval, "__import__('os').mkdir('ran')"),
        {"data": Runs(getattr, "x", "join"), "labels": []},
        {"data": Runs(np.load, "ran"), "labels": []},
        np.array([Runs(os.mkdir, "ran")], dtype=object),
        np.zeros(3, dtype=[("a", "u1")]),
        np.zeros(3, dtype="datetime64[s]"),
        Runs(np.ndarray, (3,)),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(
    tmp_path, monkeypatch, content, protocol
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match="cannot be read safely"):
        read_pickle("file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cut", [0, 1, 20, 500, -1])
def test_a_truncated_pickle(tmp_path, cut):
    folder = write_cifar10(tmp_path)
    whole = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(whole[:cut])
    with pytest.raises(DataError):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"data": records(0)[0]},
        {"data": records(0)[0], "labels": [1, 2]},
        {"data": records(0)[0], "labels": [1, 2, 3, 10]},
        {"data": records(0)[0], "labels": [1.0, 2.0, 3.0, 4.0]},
        {"data": records(0)[0].astype(np.float32), "labels": records(0)[1]},
        {"data": records(0)[0][:, 1:], "labels": records(0)[1]},
        {"data": "text", "labels": 3},
        {"data": records(0)[0], "labels": 3},
        {"data": records(0)[0], "labels": [1, [2], 3, 4]},
        {"data": np.zeros((), np.uint8), "labels": []},
        {3: 4},
    ],
)
def test_pickles_of_something_else(tmp_path, content):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("content", [b"", b"\x00" * 3072, b"\x0a" + b"\x00" * 3072])
def test_damaged_binary_files(tmp_path, content):
    folder = write_cifar10(tmp_path, "bin")
    (folder / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError):
        cifar10(tmp_path, "test")
