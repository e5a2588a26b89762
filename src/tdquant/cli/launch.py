"""``--gpus 0,1``: one process for each device, as ``accelerate launch`` or torchrun would start.

On a machine without GPUs each number stands for a process on the CPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import torch

from tdquant.errors import TDQError


def device_ids(gpus: str | None) -> list[int]:
    """The numbers in ``"0"``, ``"0,"`` or ``"0,1"``.

    Raises:
        TDQError: It is no list of numbers.
    """
    if gpus is None:
        return []
    try:
        ids = [int(part) for part in gpus.split(",") if part.strip()]
    except ValueError:
        ids = [-1]
    if any(i < 0 for i in ids) or len(set(ids)) != len(ids):
        raise TDQError(f"gpus={gpus!r}", where="--gpus", fix="device numbers, such as 0 or 0,1")
    return ids


def spread(gpus: str | None, arguments: list[str]) -> int | None:
    """Runs the command on the devices that ``--gpus`` names.

    Returns:
        The exit status of the processes that did the work, or None if this one has to.
    """
    ids = device_ids(gpus)
    if not ids or "RANK" in os.environ:  # RANK: a launcher has started this process already
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(max(ids) + 1)]
    # Before torch looks: what it has seen once, it does not look for again.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in ids if i < len(names))
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        print(f"--gpus {gpus}: no GPU here; {len(ids)} on the CPU", file=sys.stderr)
    if len(ids) == 1:
        return None
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(len(ids)), "-m", "tdquant", *arguments]
    process = subprocess.Popen(command)
    # torchrun passes a signal on to the workers, which save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: process.send_signal(received))
    return process.wait()
