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
