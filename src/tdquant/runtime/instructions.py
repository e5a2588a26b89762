"""Instruction sets of the processor that decide which integer kernels are right and fast."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

_NAMES = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "amx": ("amx_int8",),
}


@functools.cache
def instructions() -> frozenset[str]:
    """Those of ``avx2``, ``avx512``, ``vnni``, ``amx`` that the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split(":")[1].split())
    except (OSError, StopIteration):
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return frozenset()
        level = torch.backends.cpu.get_cpu_capability()  # no word of VNNI: taken as absent
        return frozenset({"AVX512": ("avx2", "avx512"), "AVX2": ("avx2",)}.get(level, ()))
    return frozenset(name for name, among in _NAMES.items() if flags.intersection(among))
