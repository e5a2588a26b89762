"""A full disk and a read-only folder for everything that writes: a TDQError, old files whole."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import torch
from benchmarks.campaign.kills import CONTEXT, WRITERS, litter, preload, state

from tdquant.errors import TDQError

NOBODY = 65534
SIZES = (0, 4, 64, 256, 1024)
"""Kilobytes that are left on the disk."""


def run(root):
    """Writer -> outcomes. A small tmpfs is the disk; mounting it needs root."""
    table, failures = {}, []
    preload(root, WRITERS)
    for name in WRITERS:
        place = root / "disks" / name
        _unmount(place)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
        try:
            for left in (None, *SIZES):
                found = _case(name, place, left)
                table.setdefault(name, {}).setdefault(found["outcome"], 0)
                table[name][found["outcome"]] += 1
                if found["outcome"] not in ("refused", "written"):
                    failures.append({"writer": name, "kilobytes": left, **found})
        finally:
            _unmount(place)
    return {"table": table, "failures": failures}


def _case(name, place, left):
    """Writes over an older version with ``left`` kilobytes of room, or in a read-only folder."""
    for file in place.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    (place / "in").mkdir()
    here, there = CONTEXT.Pipe()
    _in_process(name, place / "in", 2, None, there)
    good, ballast = state(place / "in"), place / "ballast"
    assert here.recv() is None, name
    if left is not None:
        free = shutil.disk_usage(place).free - left * 1024
        ballast.write_bytes(bytes(max(0, free)))
    else:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    _in_process(name, place / "in", 3, None, there)
    error = here.recv()
    if left is None:
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    ballast.unlink(missing_ok=True)
    now = state(place / "in")
    if error not in (None, "TDQError"):
        return {"outcome": "another exception", "why": error}
    left = [path for path in litter(place / "in") if error is None or "job.work/" not in path]
    if left:  # a refused job keeps its work for the next try
        return {"outcome": "litter", "why": left}
    if error is None:
        return {"outcome": "written"}
    lost = [path for path in good if now.get(path) != good[path]]
    return {"outcome": "lost", "why": lost[:5]} if lost else {"outcome": "refused"}


def _in_process(*args):
    process = CONTEXT.Process(target=_write, args=args)
    process.start()
    process.join()


def _write(name, place, number, _, pipe):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["TDQUANT_CACHE"] = str(place.parents[1] / "cache")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    source = place.parents[2] / "kills" / "source"
    if source.exists():
        shutil.copytree(source, place.parents[1] / "source", dirs_exist_ok=True)
    try:
        WRITERS[name](place, number)
    except TDQError:
        pipe.send("TDQError")
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}"[:300])
    else:
        pipe.send(None)


def _unmount(place: Path):
    subprocess.run(["umount", place], check=False, capture_output=True)
