import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..conftest import THREADS
from .runs import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    # As the processes have: other numbers of threads round otherwise.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(out, steps, **options):
    """Runs on two gloo processes as ``accelerate launch`` and torchrun start them."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_port", str(free_port()), "-m", "tests.train.runs", str(out), str(steps),
        json.dumps(options),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_two_processes_train_like_one(tmp_path):
    both = two_processes(tmp_path, 12)["losses"]
    # Equal parts add up to equal bits; the whole batch at once differs by rounding, which
    # low-bit rounding amplifies after a while.
    assert both == run(accumulate=2).losses
    assert both[:3] == pytest.approx(run(steps=3, warmup=0).losses, rel=1e-5)
    # One process goes on where two stopped.
    assert run(tmp_path, steps=14, accumulate=2).losses == run(steps=14, accumulate=2).losses[12:]


def test_two_processes_give_the_loss_curve_of_one_float_run():
    both = two_processes("-", 12, float_model=True)["losses"]
    assert both == pytest.approx(run(float_model=True).losses, rel=1e-5)


def test_sharded_parameters_train_like_whole_ones(tmp_path):
    both = two_processes(tmp_path, 6, sharded=True)["losses"]
    whole = run(steps=6, accumulate=2)
    assert both == pytest.approx(whole.losses, rel=1e-5)
    # What they saved is whole: one process goes on from it.
    assert len(run(tmp_path, steps=8, accumulate=2).losses) == 2
