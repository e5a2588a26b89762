"""The machine and the versions behind a measurement, and the processor's instructions."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

_INSTRUCTIONS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "amx": ("amx_int8",),
}


def processor() -> str:
    """The processor's name, if the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def instructions() -> frozenset[str]:
    """Those of ``avx2``, ``avx512``, ``vnni``, ``amx`` that the processor has. They decide which
    integer kernels are exact, and fast.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split(":")[1].split())
    except (OSError, StopIteration):
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return frozenset()
        level = torch.backends.cpu.get_cpu_capability()  # does not report VNNI: assumed absent
        return frozenset({"AVX512": ("avx2", "avx512"), "AVX2": ("avx2",)}.get(level, ()))
    return frozenset(name for name, among in _INSTRUCTIONS.items() if flags.intersection(among))


def saturates_here() -> bool:
    """Whether 8-bit kernels of this processor add pairs of products in 16 bits: x86 without VNNI
    and AMX.
    """
    return bool(instructions()) and not instructions() & {"vnni", "amx"}


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Processor, cores, threads, instructions, and versions; of a GPU, its name as well.

    Arguments:
        device: Where torch computes, such as ``"cuda:0"``.
    """
    integers = [name.upper() for name in ("vnni", "amx") if name in instructions()]
    found: dict[str, str | int] = {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instructions": ", ".join([torch.backends.cpu.get_cpu_capability(), *integers]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    if device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(device)
    return found


def version() -> str:
    """Version of tdquant."""
    return metadata.version("tdquant")
