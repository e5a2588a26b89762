"""Places that this process may not look into are named, by every reader and writer."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import tdquant as tdq
from tdquant.errors import StorageError, TDQError
from tdquant.files.looking import entries, exists, files_below, is_file, is_folder, matching
from tdquant.files.writing import replacing_folder
from tdquant.lab.data.folder import picture_files
from tdquant.lab.evaluation.folder import has_partial_results
from tdquant.lab.report.reading import read_inputs
from tdquant.training.checkpoints import Checkpoints
from tests.lowering.models import One, frozen

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")


def test_what_is_there(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for place in (file, str(file)):
        assert exists(place)
        assert is_file(place)
        assert not is_folder(place)
    assert is_folder(tmp_path)
    assert not is_file(tmp_path)
    assert entries(tmp_path) == [file]
    assert not (exists(tmp_path / "no"))
    assert not (is_file(file / "no"))
    assert not (is_folder(tmp_path / "no"))


def test_what_is_below(tmp_path):
    assert matching(tmp_path / "no", "*") == files_below(tmp_path / "no") == []
    for name in ("a/b/c.png", "a/d.png", "a/.e", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "g").symlink_to("a")
    names = lambda paths: [str(path.relative_to(tmp_path)) for path in paths]  # noqa: E731
    assert names(files_below(tmp_path)) == ["a/.e", "a/b/c.png", "a/d.png", "f.txt", "g"]
    assert names(matching(tmp_path, "*.txt")) == ["f.txt"]
    assert names(matching(tmp_path / "a", "*.png")) == ["a/d.png"]


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """A path that nobody may look at, root included."""
    place = tmp_path / "closed" / "thing"

    def refuse(path, *args, **kwargs):
        if "closed" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path, *args, **kwargs)

    real = os.stat
    monkeypatch.setattr(os, "stat", refuse)
    return place


@pytest.mark.parametrize("look", [exists, is_file, is_folder])
def test_a_closed_place_is_named(look, closed):
    with pytest.raises(StorageError, match=r"may not look there(.|\n)*thing(.|\n)*denied"):
        look(closed)


READERS = {
    "load": tdq.load,
    "open_session": lambda p: tdq.open_session(p.with_suffix(".onnx")),
    "save": lambda p: tdq.save(frozen(One(nn.Linear(4, 4))), p),
    "export": lambda p: tdq.export(
        frozen(One(nn.Linear(4, 4))), p.with_suffix(".xml"), (torch.zeros(2, 4), 3)
    ),
}


@pytest.mark.parametrize("verb", READERS)
def test_readers_and_writers(verb, closed):
    with pytest.raises(TDQError, match="closed"):
        READERS[verb](closed)


@pytest.fixture
def as_other():
    """A folder, and a context in which this process is a user to whom folders may be closed."""

    @contextlib.contextmanager
    def other():
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    if getattr(os, "geteuid", lambda: 1)() != 0:
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder), other


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file)


def replace_folder(place):
    """What is of the user in it is kept."""
    (place / "mark").touch()
    with replacing_folder(place, "mark", "mark".__eq__) as fresh:
        (fresh / "mark").touch()


LISTINGS = {
    "exists": lambda place: exists(place / "closed" / "thing"),
    "entries": lambda place: entries(place / "closed"),
    "matching": lambda place: matching(place / "closed", "*"),
    "files below": files_below,
    "report": lambda place: read_inputs([place]),
    "pictures": picture_files,
    "checkpoints": lambda place: Checkpoints(place / "closed").latest(),
    "evaluated run": lambda place: has_partial_results(place / "closed"),
    "folder to replace": replace_folder,
}


@pytest.mark.parametrize("look", LISTINGS)
def test_what_is_closed_to_this_user_is_not_left_out(look, as_other):
    folder, other = as_other
    place = folder / "place"
    for name in ("1.png", "closed/images/2.png"):
        picture(place / name)
    (place / "closed" / "step-00000001").mkdir()
    place.chmod(0o777)
    (place / "closed").chmod(0o700)
    with other(), pytest.raises(StorageError, match="closed"):
        LISTINGS[look](place)
    assert (place / "closed" / "images" / "2.png").exists()
    assert {each.name for each in folder.iterdir()} == {"place"}
