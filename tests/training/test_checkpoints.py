import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tdquant.errors import StorageError
from tdquant.training import checkpoints as module
from tdquant.training.checkpoints import Checkpoints, read_checkpoint


def save(store, step, value=0.0):
    return store.save(step, {"model": {"w": torch.full((3,), value)}}, {"seconds": 1.5})


def test_the_newest_comes_back_and_old_ones_go(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        assert save(store, step, step).name == f"step-{step:08d}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    found = store.latest()
    assert found.step == 15
    assert found.state["seconds"] == 1.5
    assert torch.equal(found.tensors("model")["w"], torch.full((3,), 15.0))


def test_nothing_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "missing").latest() is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state", "foreign", "empty"])
def test_a_damaged_one_is_passed_over_and_said(tmp_path, damage):
    store = Checkpoints(tmp_path)
    save(store, 5)
    last = save(store, 10)
    file, state = last / "model.safetensors", last / "state.json"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-4])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        state.write_text(state.read_text()[:40])
    elif damage == "foreign":
        state.write_text(json.dumps({"format": "other", "files": {}, "step": 3, "version": 1}))
    else:
        state.write_text("[]")
    with pytest.warns(UserWarning, match="step-00000010"):
        assert store.latest().step == 5


def test_a_newer_format_is_refused(tmp_path):
    folder = save(Checkpoints(tmp_path), 5)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"version": 99}))
    with pytest.raises(StorageError, match="update tdquant"):
        read_checkpoint(folder)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path)
    save(store, 5)

    def full(tensors, file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert save(store, 10) is None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert store.latest().step == 5


def test_what_a_crash_left_half_written_is_not_seen(tmp_path):
    store = Checkpoints(tmp_path)
    save(store, 5)
    half = tmp_path / ".writing-00000010-1"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert store.latest().step == 5


USERS = ("step-00000003-best", "step-3", "step-000000009", "step-0000000x", "step-00000008.old")


def test_folders_of_other_names_are_the_user_s(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    first = save(store, 3)
    for name in USERS:
        shutil.copytree(first, tmp_path / name)
    (tmp_path / "step-00000009").write_text("a file")
    assert store.latest().path == first
    save(store, 4)
    save(store, 5)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == sorted([*USERS, "step-00000009", "step-00000005"])
    assert store.latest().step == 5


def test_only_other_folders_are_no_checkpoint(tmp_path):
    save(Checkpoints(tmp_path), 3).rename(tmp_path / "step-00000003-best")
    assert Checkpoints(tmp_path).latest() is None


def test_what_crashes_left_half_written_goes_with_the_next_one(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    remains = [f".writing-00000002-{gone.pid}", f".writing-00000003-{10**30}"]
    remains += [f".writing-00000002-{os.getpid()}"]  # of an earlier process with this number
    kept = [f".writing-00000002-{living.pid}", ".writing-00000002-1", ".writing-notes"]
    kept += [f".writing-2-{gone.pid}", f".writing-00000002-{gone.pid}-mine"]
    for name in remains + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    try:
        save(Checkpoints(tmp_path), 5)
        found = sorted(p.name for p in tmp_path.iterdir())
        assert found == sorted([*kept, "step-00000005"])
    finally:
        living.communicate(b"\n")


def test_a_changed_state_is_found(tmp_path):
    folder = Checkpoints(tmp_path).save(5, {"model": {"x": torch.ones(2)}}, {"structure": None})
    file = folder / "state.json"
    file.write_text(file.read_text().replace('"step": 5', '"step": 6'))
    with pytest.raises(StorageError, match=r"state\.json: not what was written"):
        read_checkpoint(folder)
    for text in ("[" * 100_000, file.read_text().replace('"step": 6', '"step": Infinity')):
        file.write_text(text)
        with pytest.raises(StorageError, match="damaged"):
            read_checkpoint(folder)
