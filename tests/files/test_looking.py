"""Places that this process may not look into are named, by every reader and writer."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import StorageError, TDQError
from tdquant.files.looking import entries, exists, is_file, is_folder
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


OTHER = """
import os, sys
sys.path[:0] = {path!r}
from tdquant.errors import StorageError
from tdquant.files.looking import entries, exists
os.setuid(65534)
for look in (exists, entries):
    try:
        look({place!r})
    except StorageError as error:
        print(error.what)
"""


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can be another")
def test_another_user(tmp_path):
    place = tmp_path / "closed" / "thing"
    place.mkdir(parents=True)
    place.parent.chmod(0o700)
    code = OTHER.format(path=sys.path, place=str(place))
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.count("may not look there") == 2
