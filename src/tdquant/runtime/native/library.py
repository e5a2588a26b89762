"""The compiled library of kernels: found in the cache, or built there by the machine's C compiler.

A machine without a compiler, without AVX2 or with another processor runs the other kernels of the
CPU backend. ``TDQUANT_CACHE`` moves the cache, ``CC`` names the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # loaded first: its OpenMP runtime serves the kernels too

from tdquant.caching import cache_folder
from tdquant.machine import instructions

_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-mavx2", "-mfma", "-ffp-contract=off", "-fPIC", "-shared")
_THREADED = "-fopenmp"
_FUNCTIONS = {"tdq_quantize": 3, "tdq_round": 3, "tdq_multiply": 1, "tdq_normalize": 3}
"""Name -> number of arguments, all of them pointers."""


@functools.cache
def missing() -> str | None:
    """Why there are no compiled kernels on this machine, or None if there are."""
    if "avx2" not in instructions():
        return "the processor has no AVX2"
    if not _compilers():
        return "no C compiler (cc, gcc or clang, or CC=...)"
    try:
        library()
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernels did not compile: {error}"
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        OSError: It cannot be built or loaded.
    """
    sources = sorted(_SOURCES.glob("*.c"))
    text = b"".join(p.read_bytes() for p in (*sources, _SOURCES / "kernels.h"))
    version = hashlib.sha256(text + " ".join(_FLAGS).encode()).hexdigest()[:16]
    path = cache_folder() / f"kernels-{version}.so"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _build(sources, path)
        except PermissionError:
            path = Path(tempfile.mkdtemp(prefix="tdquant-")) / path.name
            _build(sources, path)
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = None, [ctypes.c_void_p] * arguments
    return loaded


def _compilers() -> list[list[str]]:
    named = os.environ.get("CC", "").split()
    return [[*named]] if named else [[c] for c in ("gcc", "cc", "clang") if shutil.which(c)]


def _build(sources: list[Path], path: Path) -> None:
    """Compiles to a temporary name beside ``path``, then renames: processes may build at once."""
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    said = ""
    try:
        for compiler in _compilers():
            for threads in ([_THREADED], []):
                command = [*compiler, *_FLAGS, *threads, *map(str, sources), "-o", partial, "-lm"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                if done.returncode == 0:
                    os.replace(partial, path)
                    return
                said = said or done.stderr.strip()[:300]
    finally:
        Path(partial).unlink(missing_ok=True)
    raise OSError(said or "no compiler")


def threads() -> int:
    """Threads that a kernel called now may use."""
    return torch.get_num_threads()
