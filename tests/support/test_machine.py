from pathlib import Path

import pytest
import torch

from tdquant.support.machine import instructions, machine


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("sse4_2", set()),
        ("avx2 fma", {"avx2"}),
        ("avx2 avx_vnni", {"avx2", "vnni"}),
        ("avx2 avx512f avx512_vnni amx_int8", {"avx2", "avx512", "vnni", "amx"}),
    ],
)
def test_instructions_are_those_that_the_system_tells(flags, found, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda file: f"model name : x\nflags : fpu {flags}\n")
    instructions.cache_clear()
    told = machine()["instructions"]
    assert instructions() == found
    assert told.split(", ")[1:] == [name.upper() for name in ("vnni", "amx") if name in found]
    instructions.cache_clear()


def test_what_the_system_does_not_tell_is_taken_as_absent(monkeypatch):
    def nowhere(file):
        raise FileNotFoundError(file)

    monkeypatch.setattr(Path, "read_text", nowhere)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    instructions.cache_clear()
    assert instructions() == frozenset()
    instructions.cache_clear()


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100 at {device}")
    assert machine("cuda:1")["device"] == "H100 at cuda:1"
    assert "device" not in machine("cpu")
    assert machine("cuda").keys() - machine().keys() == {"device"}
