"""Damaged files of every format: a TDQError, or what was there; nothing else."""

import os
import resource
import shutil
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from benchmarks.campaign.formats import FORMATS
from benchmarks.campaign.mutations import mutate
from benchmarks.campaign.workers import Worker

from tdquant.errors import TDQError

SECONDS = 120
"""After which a case counts as hanging."""
SLOW = 30
MEGABYTES = 600
"""More than a good file of the format takes, which counts as unbounded."""
NOBODY = 65534

_good = {}
"""Format -> what a good file gives, and the peak of memory over the process."""


def templates(root, formats=None):
    """Writes a good folder of every format, or of some, once."""
    for name, kind in {n: FORMATS[n] for n in formats or FORMATS}.items():
        if not (root / name).exists():
            fresh = root / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            kind.make(fresh)
            fresh.rename(root / name)


def case(argument):
    """Runs one case: ``(root, format, seed)``, in a worker."""
    root, name, seed = argument
    root = Path(root)
    torch.set_num_threads(1)
    os.environ["TDQUANT_CACHE"] = str(root / "cache")
    if name not in _good:
        found = attempt(root, name, None)
        if name != "hostile ckpt":
            assert found["outcome"] == "read", found
        _good[name] = found
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _kilobytes("VmSize") * 1024 + (3 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    found = attempt(root, name, seed)
    good = _good[name]
    if found["outcome"] == "read":
        same = found["digest"] == good.get("digest")
        found["outcome"] = "same" if same else "other"
        # Digests are of everything but the index that has them.
        if not same and FORMATS[name].sealed and not found["mutation"].endswith(".json"):
            found["outcome"] = "unnoticed"
    if found["outcome"] in ("same", "other", "refused"):
        if found["megabytes"] > good["megabytes"] + MEGABYTES:
            found["outcome"] = "memory"
        elif found["seconds"] > SLOW:
            found["outcome"] = "slow"
        if found["written"]:
            found["outcome"] = "written elsewhere"
    return found


def attempt(root, name, seed):
    """Reads a copy of the template, damaged unless ``seed`` is None."""
    box = root / f"box-{os.getpid()}"
    shutil.rmtree(box, ignore_errors=True)
    for part in ("cwd", "home", "out"):
        (box / part).mkdir(parents=True)
    shutil.copytree(root / "templates" / name, box / "in")
    done = "nothing" if seed is None else mutate(box / "in", seed)
    os.environ["HOME"] = str(box / "home")
    os.chdir(box / "cwd")
    unreadable = done.startswith("unreadable") and os.geteuid() == 0
    if unreadable:  # root reads everything
        for path in [box, *box.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        os.seteuid(NOBODY)
    Path("/proc/self/clear_refs").write_text("5") if not unreadable else None
    before, began = _kilobytes("VmRSS"), time.perf_counter()
    found = {"format": name, "seed": seed, "mutation": done}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found |= {"outcome": "read", "digest": FORMATS[name].read(box / "in", box / "out")}
    except TDQError as error:
        found |= {"outcome": "refused", "why": type(error).__name__}
    except BaseException as error:
        why = f"{type(error).__name__}: {str(error)[:300]}"
        trace = "".join(traceback.format_exception(error))[-3000:]
        found |= {"outcome": "another exception", "why": why, "trace": trace}
    finally:
        if unreadable:
            os.seteuid(0)
    found["seconds"] = round(time.perf_counter() - began, 3)
    found["megabytes"] = max(0, _kilobytes("VmHWM") - before) // 1024
    found["written"] = sorted(_strange(root, box))
    for name in found["written"]:
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    os.chdir(root)
    return found


def _strange(root, box):
    """What lies where a reader has no business."""
    for place in (box / "cwd", box / "home"):
        yield from map(str, place.iterdir())
    known = {"in", "out", "cwd", "home"}
    yield from (str(path) for path in box.iterdir() if path.name not in known)
    known = {"templates", "cache", "results.json", "results.new"}
    for path in root.iterdir():
        if path.name not in known and not path.name.startswith("box-"):
            yield str(path)
    if Path("/tmp/outside").exists():
        yield "/tmp/outside"


def _kilobytes(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


GOOD = {"refused", "same", "other"}


def run(root, cases, seed, share, deadline, formats=None, say=print):
    """Runs cases of all formats in turn and yields what they found.

    Arguments:
        root: Working folder; templates that are there are used again.
        cases: Numbers of cases.
        seed: First part of every seed.
        share: ``(K, N)``: every N-th case from K on.
        deadline: ``time.monotonic()`` after which no case starts.
        formats: Names of formats; None takes all.
    """
    templates(root / "templates", formats)
    names = list(formats or FORMATS)
    worker, k, n = Worker(case), *share
    try:
        for number in cases:
            if number % n == k and time.monotonic() < deadline:
                name = names[(number // n) % len(names)]
                found = worker((str(root), name, f"{seed}-{number}"), SECONDS)
                found = {"format": name, "seed": f"{seed}-{number}"} | found
                if found["outcome"] not in GOOD:
                    say(
                        f"{found['outcome']}: {name}, seed {found['seed']}, "
                        f"{found.get('mutation', '')}: {found.get('why', found.get('written'))}"
                    )
                yield found
    finally:
        worker.close()


def counted(found):
    """Format -> outcome -> number of cases."""
    table = {}
    for case_ in found:
        table.setdefault(case_["format"], Counter())[case_["outcome"]] += 1
    return {name: dict(outcomes) for name, outcomes in table.items()}
