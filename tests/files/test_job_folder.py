import errno
import json
import os
import signal

import pytest
import torch

from tdquant.errors import StorageError
from tdquant.files.job_folder import open_job

ASKED = {"model": "abc", "seed": 3, "grid": (1, 2)}


def begin(folder, asked=ASKED, **options):
    return open_job(folder, "reconstruction", asked, **options)


def test_a_stopped_job_goes_on_with_its_parts(tmp_path):
    folder = tmp_path / "deep" / "work"
    with begin(folder) as job:
        assert job.read("block-0") is None
        job.write("block-0", {"a": torch.arange(3)}, {"error": 0.5, "nothing": float("nan")})
        job.claim("notes.txt").write_text("made by the job")
    with begin(folder, dict(reversed(ASKED.items()))) as job:
        part = job.read("block-0")
        assert part.tensors["a"].tolist() == [0, 1, 2]
        assert part.facts == {"error": 0.5, "nothing": None}
        job.write("block-0", {"a": torch.ones(1)}, {})
        assert job.read("block-0").tensors["a"].tolist() == [1]
        job.forget("block-0")
        job.forget("block-0")
        assert job.read("block-0") is None
        job.remove()
    assert not folder.exists()


def test_a_job_of_something_else_is_named_and_left(tmp_path):
    with begin(tmp_path) as job:
        job.write("a", {}, {})
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    other = ASKED | {"seed": 4, "more": 1}
    with (
        pytest.raises(StorageError, match="another reconstruction") as caught,
        begin(tmp_path, other),
    ):
        pass
    assert "seed, more differ" in caught.value.why
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    with pytest.raises(StorageError, match="another"), open_job(tmp_path, "training", ASKED):
        pass
    with begin(tmp_path, other, restart=True) as job:
        assert job.read("a") is None
    with pytest.raises(StorageError, match="another"), begin(tmp_path):
        pass


@pytest.mark.parametrize("thing", ["file", "folder", "foreign", "damaged", "newer"])
def test_what_no_job_made_is_not_touched(tmp_path, thing):
    folder = tmp_path / "work"
    if thing == "file":
        folder.write_text("years")
    else:
        folder.mkdir()
        (folder / "thesis").write_text("years")
    index = {"format": "tdquant-job-folder", "version": 9} if thing == "newer" else {"format": "x"}
    if thing not in ("file", "folder"):
        (folder / "job.json").write_text("{" if thing == "damaged" else json.dumps(index))
    words = {"foreign": "foreign", "damaged": "damaged", "newer": "newer"}
    for restart in (False, True):
        with (
            pytest.raises(StorageError, match=words.get(thing, "something else")),
            begin(folder, restart=restart),
        ):
            pass
    assert (folder if thing == "file" else folder / "thesis").read_text() == "years"


def test_files_of_the_user_stay(tmp_path):
    with begin(tmp_path) as job:
        job.write("a", {"a": torch.ones(2)}, {})
        (job.claim("calls")).mkdir()
        (tmp_path / "calls" / "x").write_text("ours")
        (tmp_path / "b.safetensors").write_text("theirs")
        job.remove()
    assert [f.name for f in tmp_path.iterdir()] == ["b.safetensors"]


def test_one_process_at_a_time(tmp_path):
    with begin(tmp_path) as job:
        job.write("a", {}, {})
        with pytest.raises(StorageError, match="another process"), begin(tmp_path):
            pass
        with begin(tmp_path, writes=False) as reader:
            assert reader.read("a") is not None
            reader.write("b", {}, {})
            reader.forget("a")
            reader.remove()
        assert job.read("a") is not None
        assert job.read("b") is None


def test_a_killed_process_holds_nothing(tmp_path):
    child = os.fork()
    if child == 0:
        with begin(tmp_path) as job:
            job.write("a", {"a": torch.ones(1)}, {})
            (tmp_path / ".a.safetensors.tdquant-0").mkdir()  # of the next state of it
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with begin(tmp_path) as job:
        assert job.read("a") is not None
        job.remove()
    assert not tmp_path.exists()


def test_damaged_parts_and_those_of_another_job(tmp_path):
    with begin(tmp_path / "one") as one, begin(tmp_path / "two", {"seed": 1}) as two:
        one.write("a", {"a": torch.ones(4)}, {})
        file = tmp_path / "one" / "a.safetensors"
        (tmp_path / "two" / "a.safetensors").write_bytes(file.read_bytes())
        with pytest.raises(StorageError, match="part of another"):
            two.read("a")
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(StorageError, match="damaged"):
            one.read("a")


def test_errors_of_the_work_are_not_those_of_the_folder(tmp_path):
    with pytest.raises(OSError, match="image") as caught, open_job(tmp_path / "j", "trial", {}):
        raise OSError(errno.EIO, "the disk of the image", "/data/image.png")
    assert type(caught.value) is OSError


def test_a_stopped_job_is_resumed_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("tdquant.files.workspace.fcntl", None)
    for _ in range(2):
        with open_job(tmp_path / "j", "trial", {"seed": 0}) as job:
            job.write("part", {"x": torch.ones(2)}, {})
    assert (tmp_path / "j" / "part.safetensors").exists()


@pytest.mark.parametrize("name", ["../precious", "/precious", "..", "a/b", ""])
def test_names_lead_nowhere_else(tmp_path, name):
    with open_job(tmp_path / "j", "trial", {"seed": 0}):
        pass
    index = tmp_path / "j" / "job.json"
    index.write_text(index.read_text().replace('"names": []', f'"names": ["{name}"]'))
    with pytest.raises(StorageError, match="damaged"), open_job(tmp_path / "j", "trial", {}):
        pass


def test_a_process_that_does_not_write_refuses_another_job_too(tmp_path):
    with open_job(tmp_path / "j", "trial", {"seed": 0}):
        pass
    with (
        pytest.raises(StorageError, match="another trial"),
        open_job(tmp_path / "j", "trial", {"seed": 1}, writes=False),
    ):
        pass


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "..", "/tmp/x"])
def test_names_that_are_none_are_not_removed(tmp_path, name):
    with begin(tmp_path / "work"):
        pass
    index = json.loads((tmp_path / "work" / "job.json").read_text())
    (tmp_path / "work" / "job.json").write_text(json.dumps(index | {"names": [name]}))
    with pytest.raises(StorageError, match="is not the name of a file"), begin(tmp_path / "work"):
        pass
