import os
import subprocess
import sys

import pytest

from tdquant.runtime.native import library


@pytest.fixture(autouse=True)
def _forget():
    yield
    library.missing.cache_clear()
    library.library.cache_clear()


def test_without_a_compiler(monkeypatch):
    library.missing.cache_clear()
    monkeypatch.setattr(library, "_compilers", list)
    assert "C compiler" in library.missing()


def test_without_avx2(monkeypatch):
    library.missing.cache_clear()
    monkeypatch.setattr(library, "instructions", frozenset)
    assert "AVX2" in library.missing()


def test_a_compiler_that_fails_says_what_it_said(monkeypatch, tmp_path):
    library.missing.cache_clear()
    library.library.cache_clear()
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", f"{sys.executable} -c raise(SystemExit('broken'))")
    if "avx2" not in library.instructions():
        pytest.skip("the processor has no AVX2")
    assert "broken" in library.missing()
    assert not list(tmp_path.iterdir()), "nothing half-built stays"


@pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
def test_processes_that_build_at_once(tmp_path):
    code = (
        "from tdquant.runtime.native.library import missing; assert missing() is None, missing()"
    )
    env = os.environ | {"TDQUANT_CACHE": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
