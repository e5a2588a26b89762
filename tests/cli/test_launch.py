import os

import pytest

from tdquant.cli.launch import device_ids, spread
from tdquant.cli.switches import overrides_among, truth
from tdquant.cli.train import learning_rate
from tdquant.errors import TDQError


@pytest.mark.parametrize(
    ("text", "ids"), [(None, []), ("0", [0]), ("0,", [0]), ("0,1", [0, 1]), ("3, 1", [3, 1])]
)
def test_device_numbers(text, ids):
    assert device_ids(text) == ids


@pytest.mark.parametrize("text", ["a", "-1", "0,0", "0;1"])
def test_what_is_no_device(text):
    with pytest.raises(TDQError, match="--gpus"):
        device_ids(text)


def test_one_device_or_a_launched_process_works_itself(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    assert spread("0", []) is None
    monkeypatch.setenv("RANK", "1")
    assert spread("0,1", []) is None


def test_truth():
    import argparse

    assert [truth(w) for w in ("True", "yes", "1", "False", "no", "0")] == [True] * 3 + [False] * 3
    with pytest.raises(argparse.ArgumentTypeError):
        truth("maybe")


def test_overrides_are_told_from_files(tmp_path):
    file = tmp_path / "a=b.yaml"
    file.touch()
    assert overrides_among(["c.yaml", "x.y=3", str(file)]) == (["c.yaml", str(file)], ["x.y=3"])


def test_learning_rates(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert learning_rate(5e-5, False, {"batch_size": 32}, 2)[0] == 5e-5
    assert learning_rate(5e-5, True, {"batch_size": 32}, 2)[0] == pytest.approx(5e-5 * 64)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert learning_rate(5e-5, True, {"batch_size": 32}, 1)[0] == pytest.approx(5e-5 * 64)


def test_visible_devices_are_those_that_were_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    assert spread("2", []) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert spread("3", []) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
