import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data import dataset_from_config, make_dataset
from tests.lab.data.written import (
    encoded,
    write_cifar10,
    write_fashion_mnist,
    write_images,
    write_lmdb,
)


def test_unknown_names_and_options_are_told_with_the_nearest():
    with pytest.raises(DataError, match=r"no data set 'cifar-10'.*\n.*one of cifar10"):
        make_dataset("cifar-10")
    with pytest.raises(DataError) as caught:
        make_dataset("folder", sise=3, flip_p=2)
    text = str(caught.value)
    assert "folder.sise: no such key; nearest: size" in text
    assert "folder.root: missing" in text
    assert "folder.flip_p=2: 0 to 1" in text


@pytest.mark.parametrize("name", ["folder", "fashion-mnist", "fashion_mnist"])
def test_own_targets(tmp_path, name):
    write_images(tmp_path, 2)
    write_fashion_mnist(tmp_path, count=2)
    params = {"root": str(tmp_path), "size": 28, "flip_p": 0.25}
    found = dataset_from_config({"target": f"tdquant.data.{name}", "params": params})
    assert found.name == name.replace("_", "-")
    assert found.flip == 0.25
    assert found[0].shape[-1] == 28


def test_a_target_without_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no LSUN images .*data/lsun/cats"):
        dataset_from_config({"target": "ldm.data.lsun.LSUNCatsTrain", "params": None})
    with pytest.raises(DataError, match=r"data\.params\.train\.params\.root: missing"):
        dataset_from_config({"target": "tdquant.data.folder"})


@pytest.mark.parametrize(
    ("kind", "names", "folder"),
    [
        ("Churches", "church_outdoor", "churches"),
        ("Bedrooms", "bedrooms", "bedrooms"),
        ("Cats", "cat", "cats"),
    ],
)
def test_lsun_targets_know_their_files(tmp_path, monkeypatch, kind, names, folder):
    monkeypatch.chdir(tmp_path)
    for split, chosen in (("train", "1"), ("val", "2")):
        write_images(tmp_path / "data" / "lsun" / folder)
        (tmp_path / "data" / "lsun" / f"{names}_{split}.txt").write_text(f"{chosen}.png\n")
    train, held_out = (
        dataset_from_config({"target": f"ldm.data.lsun.LSUN{kind}{split}", "params": {"size": 16}})
        for split in ("Train", "Validation")
    )
    assert (train.flip, held_out.flip) == (0.5, 0.0)
    assert train.source.names == [f"data/lsun/{folder}/1.png"]
    assert held_out.source.names == [f"data/lsun/{folder}/2.png"]
    assert train[0].shape == (3, 16, 16)


def test_params_win_over_the_defaults_of_a_target(tmp_path):
    target = "ldm.data.lsun.LSUNChurchesTrain"
    write_images(tmp_path / "other")
    (tmp_path / "few.txt").write_text("3.png\n")
    params = {"data_root": str(tmp_path / "other"), "txt_file": str(tmp_path / "few.txt")}
    found = dataset_from_config({"target": target, "params": {**params, "size": 8, "flip_p": 0}})
    assert len(found) == 1
    assert found.flip == 0
    store = write_lmdb(tmp_path / "lmdb", {b"k": encoded(0)})
    params = {"data_root": str(store), "size": 8}
    assert dataset_from_config({"target": target, "params": params}).source.names == ["k"]


def test_anything_of_cifar10(tmp_path):
    write_cifar10(tmp_path)
    params = {"root": str(tmp_path)}
    lengths = [
        len(dataset_from_config({"target": target, "params": params}))
        for target in ("ldm.data.cifar10.CIFAR10Train", "ldm.data.cifar10.CIFAR10Validation")
    ]
    assert lengths == [20, 4]
    own = dataset_from_config({"target": "tdquant.data.cifar10", "params": params})
    assert torch.equal(own.labels[:4], own.labels[:4].clamp(0, 9))
    assert len(own) == 20


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": "ldm.data.lsun.LSUNChurchTrain"}, "one of ldm.data.lsun.LSUNChurchesTrain"),
        ({"target": "tdquant.data.cat"}, "tdquant.data.cats"),
        ({"target": "x"}, "no data set for the target 'x'"),
        ({"params": {}}, "target: missing"),
        ({"target": "tdquant.data.cats", "parms": {}}, "nearest: params"),
        ({"target": "tdquant.data.cats", "params": [1]}, "params: a section of keys"),
        ([1], "a section of keys is needed"),
        ({"target": "tdquant.data.cats", "params": {"cuont": 3}}, "nearest: count"),
    ],
)
def test_nodes_that_cannot_be_read(node, message):
    with pytest.raises(DataError, match=message) as caught:
        dataset_from_config(node, "data.params.validation")
    assert "data.params.validation" in str(caught.value)
