"""Files of recorded calls, those of earlier versions included."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tdquant as tdq
from tdquant.calls.shards import read_shards, write_shards
from tdquant.errors import StorageError

INDEX = {
    "format": "tdquant-calls",
    "version": 1,
    "made_by": {"pipeline": "Some", "steps": 2},
    "denoisers": {"unet": {"calls": 1, "shards": ["unet-00000.safetensors"]}},
}


@pytest.fixture
def folder(tmp_path):
    """As version 0.1 wrote it."""
    calls = [
        {"sample": {"__tensor__": "t0"}, "timestep": 3, "added": [{"__tensor__": "t0"}, None]}
    ]
    save_file({"t0": torch.ones(1, 2)}, tmp_path / "unet-00000.safetensors",
              metadata={"calls": json.dumps(calls)})  # fmt: skip
    (tmp_path / "calls.json").write_text(json.dumps(INDEX, indent=1) + "\n")
    return tmp_path


def test_a_folder_of_version_0_1_is_read(folder):
    found = tdq.trajectories(folder)
    assert len(found) == 1
    assert found.made_by == INDEX["made_by"]
    (call,) = found["unet"]
    assert call["sample"].tolist() == [[1, 1]]
    assert call["timestep"] == 3
    assert call["added"][0] is call["sample"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"denoisers": {"unet": {"calls": "1", "shards": []}}},
            "unet.calls is not a whole number",
        ),
        ({"denoisers": {"unet": {"calls": -1, "shards": []}}}, r"unet\.calls"),
        ({"denoisers": None}, "denoisers is not an object"),
        ({"format": "tdquant-index"}, "a foreign format"),
        ({"version": 3}, "newer"),
    ],
)
def test_an_index_that_does_not_fit(folder, change, words):
    (folder / "calls.json").write_text(json.dumps(INDEX | change))
    with pytest.raises(StorageError, match=words):
        tdq.trajectories(folder)


def test_a_denoiser_that_is_not_there(folder):
    with pytest.raises(StorageError, match="no calls of 'vae'"):
        tdq.trajectories(folder)["vae"]


def test_what_the_user_put_there_stays(tmp_path):
    place = tmp_path / "calls"
    runs = [{"unet": [{"x": torch.ones(2)}]}, {"unet": [{"x": torch.zeros(2)}]}]
    write_shards(place, iter(runs), ["unet"], {})
    (place / "prompts.txt").write_text("a cat")
    write_shards(place, iter(runs[:1]), ["unet"], {})
    assert sorted(file.name for file in place.iterdir()) == [
        "calls.json", "prompts.txt", "unet-00000.safetensors",
    ]  # fmt: skip


def test_reading_leaves_gradients_on(tmp_path):
    runs = [{"unet": [{"x": torch.ones(2)}] * 2}]
    calls = write_shards(tmp_path / "c", iter(runs), ["unet"], {})
    states = [torch.is_grad_enabled() for _ in calls]
    assert states == [True, True]


def test_calls_of_a_writer_that_died_between_two_renames_come_back(tmp_path):
    place = tmp_path / "calls"
    write_shards(place, iter([{"unet": [{"x": torch.ones(2)}]}]), ["unet"], {})
    workspace = tmp_path / ".calls.tdquant-0"
    workspace.mkdir()
    (workspace / "lock").touch()
    place.rename(workspace / "old")
    assert len(list(read_shards(place))) == 1


@pytest.mark.parametrize("calls", ['[{"x": {"__tensor__": "t9"}}]', "[1]", "[" * 10_000])
def test_calls_that_do_not_fit_their_tensors(folder, calls):
    file = folder / "unet-00000.safetensors"
    save_file({"t0": torch.ones(1)}, file, metadata={"calls": calls})
    with pytest.raises(StorageError, match="calls"):
        list(tdq.trajectories(folder)["unet"])


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "", "a\0b"])
def test_shards_elsewhere(folder, name):
    index = INDEX | {"denoisers": {"unet": {"calls": 1, "shards": [name]}}}
    (folder / "calls.json").write_text(json.dumps(index))
    with pytest.raises(StorageError, match="is not the name of a file"):
        tdq.trajectories(folder)


def test_calls_are_found_from_another_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = write_shards("calls", iter([{"unet": [{"x": torch.ones(2)}]}]), ["unet"], {})
    read = read_shards("calls")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for calls in (written, read):
        assert [call["x"].tolist() for call in calls] == [[1, 1]]


def test_types_of_every_argument_survive(tmp_path):
    """Qwen-Image takes tuples, OmniGen whole numbers as keys, some models lists of tensors."""
    a, b = torch.randn(2, 3), torch.randn(1)
    call = {
        "shapes": [[(1, 4, 4)], [(1, 2, 2)]],
        "sizes": {1: [[2, 6]], "x": None, 2.5: 0.5},
        "pair": (a, [b, {"c": (a,)}]),
        "marks": {"__tensor__": "t0", "__tuple__": [1], "__items__": {}},
        "flags": (True, 1, 1.5, "text", ()),
    }
    write_shards(tmp_path / "calls", [{"unet": [call]}], ["unet"], {})
    (again,) = read_shards(tmp_path / "calls")

    def same(x, y):
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return [*map(repr, x)] == [*map(repr, y)] and all(same(x[k], y[k]) for k in x)
        if isinstance(x, (list, tuple)):
            return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
        return x == y and type(x) is type(y)

    assert same(call, again)


def test_dictionaries_whose_keys_cannot_be_stored(tmp_path):
    with pytest.raises(StorageError, match="type dict") as error:
        write_shards(tmp_path / "calls", [{"unet": [{"sizes": {(1, 2): 3}}]}], ["unet"], {})
    assert error.value.where == "sizes"
