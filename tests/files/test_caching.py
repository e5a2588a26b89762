import os
import tempfile
from pathlib import Path

from tdquant.files.caching import cache_folder


def test_the_folder_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("TDQUANT_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("TDQUANT_CACHE", "")
    assert cache_folder() == Path("/caches/tdquant")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tdquant"


def test_without_a_home_directory_it_is_among_temporary_files(monkeypatch):
    for name in ("TDQUANT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder() == Path(tempfile.gettempdir()) / "tdquant"
