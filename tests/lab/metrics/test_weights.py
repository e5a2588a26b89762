import pickle

import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics.weights import find_weights, loading, read_state


class Attack:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_never_run(tmp_path, capsys):
    torch.save({"w": Attack()}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack()))
    for name in ("bad.pth", "plain.pth"):
        with pytest.raises(DataError, match="cannot be read"):
            read_state(tmp_path / name)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.pth", "empty.pth", "empty.safetensors"])
def test_files_that_are_no_weights(name, tmp_path):
    if name.startswith("empty"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        read_state(tmp_path / name)


def test_a_file_of_something_else(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*it holds a list"):
        read_state(tmp_path / "list.pth")


def test_weights_of_another_network_are_listed():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(DataError, match="weights of another network") as raised, loading("here"):
        layer.load_state_dict({"weight": torch.zeros(3, 2), "c": torch.zeros(1)})
    for word in ('"bias"', '"c"', "size mismatch for weight"):
        assert word in raised.value.why
    with pytest.raises(DataError, match="and 12 more"), loading("here"):
        torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(9)]).load_state_dict(
            {f"{i}.{n}": torch.zeros(7) for i in range(9) for n in ("weight", "bias")}
        )


def test_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DataError, match="not found") as raised:
        find_weights(["w-e3b0c442.pth"], "there")
    assert "there" in raised.value.fix
    assert "download" not in raised.value.fix
    (tmp_path / "w-e3b0c442.pth").write_bytes(b"")  # the SHA-256 of nothing begins so
    assert find_weights(["w-e3b0c442.pth"], "there") == tmp_path / "w-e3b0c442.pth"
