import errno
import os

import pytest

from tdquant.errors import StorageError
from tdquant.files.places import check_writable, check_writable_file, check_writable_folder
from tdquant.files.writing import new_folder, replacing


def everything(folder):
    return sorted(folder.rglob("*"))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("name", ["new", "file", "folder/new", "a/b/c"])
def test_a_file_that_can_be_written_leaves_nothing(place, name):
    before = everything(place)
    check_writable_file(place / name)
    assert everything(place) == before
    with replacing(place / name) as fresh:
        fresh.write_text("new")
    assert (place / name).read_text() == "new"


@pytest.mark.parametrize("name", ["new", "folder", "a/b/c"])
def test_a_folder_that_can_be_written_leaves_nothing(place, name):
    before = everything(place)
    check_writable_folder(place / name)
    check_writable(place / name)
    assert everything(place) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder", "a folder is there"),
        ("file/below", "cannot be written"),
        ("file/a/b", "cannot be written"),
        ("a\0b", "no path"),
        ("n" * 300, "name too long"),
        ("", "folder is there"),
        ("/proc/nothing/a", "cannot be written"),
    ],
)
def test_a_place_without_room_for_a_file(place, name, says):
    before = everything(place)
    for write in (check_writable_file, lambda path: replacing(path).__enter__()):
        with pytest.raises(StorageError, match=f"(?i){says}"):
            write(place / name)
    assert everything(place) == before


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b", "/proc/nothing/a"])
def test_a_place_without_room_for_a_folder(place, name):
    before = everything(place)
    for write in (check_writable_folder, lambda path: new_folder(path).__enter__()):
        with pytest.raises(StorageError):
            write(place / name)
    assert everything(place) == before


def test_a_folder_in_which_nothing_can_be_made(place, monkeypatch):
    def refuse(path, *_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    for check, name in ((check_writable_file, "new"), (check_writable_folder, "folder")):
        with pytest.raises(StorageError, match="Read-only"):
            check(place / name)
