"""kill -9 at random moments and at every rename of everything that writes.

Afterwards there is the old state or the new one, the command run again ends in the same bits as
one that nobody stopped, and nothing else lies around.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random

import torch

import tdquant as tdq
from tdquant.models import load_embedded

CONTEXT = multiprocessing.get_context("fork")
"""Imports are done once."""

LITTER = (".tdquant-", ".writing-", ".work", ".tmp", ".new")
VOLATILE = ("record.json", "state.json", "log.jsonl", "features/random-00000.safetensors")
"""Files with times of the clock in them: that they are there is compared, not their bytes."""


def _quiet():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def save(place, number):
    pipe = load_embedded("tiny")
    tdq.quantize(pipe.unet, tdq.Recipe(4, 32, remedies=()))
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(number)
    tdq.save(tdq.freeze(pipe.unet), place / "model")


def job(place, number):
    from tests.lab.runs.tiny import workspace

    from tdquant.lab.jobs import QuantizeOptions, run_job

    source = place.parent / "source"
    if not source.exists():
        workspace(source)
    options = QuantizeOptions(
        model=str(source / "model.safetensors"), config=[source / "config.yaml"], prompts=2,
        out=place / "job", recipe=tdq.Recipe(4, 8, scale="static"), steps=2, seed=number,
        pictures=0, progress=False, reconstruct="gptq",
    )  # fmt: skip
    run_job(options)


def train(place, number):
    from tests.training.runs import run

    run(place / "run", steps=6, every=2, seed=number)


def evaluate(place, number):
    from tests.lab.evaluation.small import run

    run(place / "evaluation", images=8, paired=4, seed=number)


def export(place, number):
    from benchmarks.campaign.formats import frozen_tiny

    example = torch.zeros(1, 3, 16, 16), torch.tensor([number])
    tdq.export(frozen_tiny(scale="static"), place / "model.xml", example=example)


WRITERS = {"save": save, "quantize": job, "train": train, "evaluate": evaluate, "export": export}


def preload(root, writers):
    """Runs writers once, so that forked processes have what they import. OpenVINO does not survive
    a fork, so that of exported files is imported anew.
    """
    torch.set_num_threads(1)
    os.environ["TDQUANT_CACHE"] = str(root / "kills" / "cache")
    with tempfile.TemporaryDirectory(dir=root) as place:
        (Path(place) / "in").mkdir()
        for name in set(writers) - {"export"}:
            WRITERS[name](Path(place) / "in", 1)


def state(place):
    """Relative path -> digest of every file."""
    return {
        file.relative_to(place).as_posix(): "there"
        if file.as_posix().endswith(VOLATILE)
        else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


def litter(place):
    """What no finished writer leaves."""
    return [p for p in state(place) if any(word in p for word in LITTER)]


def _write(name, place, number, renames, started):
    """In a process of its own; before rename ``renames`` it kills itself."""
    _quiet()
    os.environ["TDQUANT_CACHE"] = str(place.parent / "cache")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if renames is not None:
        _die_at(renames)
    started.set()
    WRITERS[name](place, number)


def _die_at(number):
    """Kills this process at its rename of that number, before or after it."""
    seen = 0

    def dying(rename):
        def call(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*args, **kwargs)

        return call

    os.rename, os.replace = dying(os.rename), dying(os.replace)


def run_process(name, place, number, renames=None, after=None):
    """Whether a writer came to its end, and its seconds without imports. ``after`` seconds it is
    killed.
    """
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_write, args=(name, place, number, renames, started))
    process.start()
    started.wait(120)
    began = time.perf_counter()
    process.join(after)
    if process.exitcode is None and after is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == 0, time.perf_counter() - began


def run(root, points, seed, share, deadline, writers=None, passed=(), say=print):
    """Kills writers and yields what was found, with the number of the case.

    Arguments:
        root: Working folder.
        points: Random points in all.
        seed: Of the points.
        share: ``(K, N)``: every N-th point.
        deadline: ``time.monotonic()`` after which no case starts.
        writers: Names of writers; None takes all.
        passed: Numbers of cases that are left out.
    """
    names, random = list(writers or WRITERS), Random(seed)
    good, seconds = {}, {}
    preload(root, names)
    for name in names:
        place = root / "kills" / f"good-{name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        done, seconds[name] = run_process(name, place, 2)
        assert done, name
        good[name] = state(place)
    cases = [(names[i % len(names)], None, random.random()) for i in range(points)]
    cases += [(name, number, None) for name in names for number in range(1, 13)]
    ended = set()
    for index, (name, rename, moment) in enumerate(cases):
        if time.monotonic() > deadline:
            return
        if index % share[1] != share[0] or (rename is not None and name in ended):
            continue
        if index in passed:
            continue
        place = root / "kills" / f"case-{name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        after = None if moment is None else moment * seconds[name]
        finished, _ = run_process(name, place, 2, rename, after)
        if rename is not None and finished:
            ended.add(name)  # it has fewer renames
            continue
        left = state(place)
        again, _ = run_process(name, place, 2)
        at = "rename" if rename else "moment"
        found = {"case": index, "writer": name, "at": at, "outcome": "the same"}
        now = state(place)
        if not again:
            found["outcome"] = "cannot go on"
        elif litter(place):
            found |= {"outcome": "litter", "why": litter(place)}
        elif now != good[name]:
            different = [k for k in good[name] | now if good[name].get(k) != now.get(k)]
            found |= {"outcome": "other bits", "why": different[:5]}
        if found["outcome"] != "the same":
            found["left"] = list(left)
            say(f"kill: {json.dumps(found)}, rename {rename}, after {after}")
        yield found
